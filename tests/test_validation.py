"""What a training measures of itself, and what it does because of it: a run whose images stay what they were."""

import json

import pytest

from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from tests.commands import jaxbooth, succeed, train

# Steps so small that no image changes: nothing gets better, and nothing drifts.
STILL = (
    "--train.learning-rate", "1e-9", "--validation.every", 6, "--validation.drift-limit", 0.25, "--no-export",
    "--evaluation.every", 3, "--evaluation.num-prompts", 2,
    "--evaluation.images-per-prompt", 1, "--evaluation.num-class-images", 2,
    "--evaluation.clip", "demo", "--evaluation.dino", "none",
    "--evaluation.keep-best", "clip_i", "--evaluation.patience", 2, "--train.max-checkpoints", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(micro_model, tmp_path_factory):
    """Its folder and what it printed."""
    run_dir = tmp_path_factory.mktemp("still") / "run"
    return run_dir, succeed(train(run_dir, "--model", micro_model, *STILL, steps=30))


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


def best_and_last(run_dir) -> tuple[int, int]:
    """Steps of the highest CLIP-I after training began, and of the last evaluation."""
    after = lines(run_dir)[1:]
    return max(after, key=lambda line: line["eval/clip_i"])["step"], after[-1]["step"]


def test_figures_and_metrics_are_logged_at_their_steps(run):
    found = lines(run[0])
    assert [line["step"] for line in found] == [3 * index for index in range(len(found))]
    for line in found:
        assert set(line) == {"step"} | {
            f"eval/{name}" for name in ("drift", "subject_distance", "clip_i", "clip_t", "pres", "div")
        }
        assert line["eval/drift"] < 0.01
        assert line["eval/subject_distance"] == pytest.approx(found[0]["eval/subject_distance"], abs=1e-3)


def test_training_ends_when_nothing_gets_better_and_keeps_the_best(run):
    run_dir, output = run
    best, last = best_and_last(run_dir)
    assert last == best + 2 * 3 < 30
    assert f"ended early at step {last}: 2 evaluations without a better clip_i" in output
    assert f"at step {best}, which is kept (--step {best})" in output
    assert "the class did not drift past 0.25" in output
    # The one before the last stays too: it was the calm one when the last was saved, before its drift was known.
    assert {int(path.name) for path in (run_dir / "checkpoints").iterdir()} == {best, last - 3, last}


def test_the_kept_checkpoint_can_be_drawn_from(run, tmp_path):
    best, last = best_and_last(run[0])
    arguments = ("--prompt", "a sks cat", "--num", 1, "--steps", 1)
    succeed(jaxbooth("sample", run[0], *arguments, "--step", best, "--out", tmp_path / "samples"))
    refused = jaxbooth("sample", run[0], *arguments, "--step", 1, "--out", tmp_path / "others")
    assert refused.returncode == 2
    assert f"has no checkpoint of step 1; there are {best}, {last - 3}, {last} (--step)." in refused.stderr


def test_a_run_that_ended_early_is_complete_until_it_is_told_to_go_on(run, micro_model):
    _, last = best_and_last(run[0])
    output = succeed(train(run[0], "--model", micro_model, *STILL, steps=30))
    assert f"is complete at step {last} of 30; raise --evaluation.patience to train on" in output


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"keep_best": "clip_i"}, "--evaluation.keep-best needs --evaluation.every"),
        ({"every": 5, "patience": 2}, "--evaluation.patience needs --evaluation.keep-best"),
    ],
)
def test_settings_that_need_others_say_so(evaluation, message):
    data = {"instance_dir": "demo", "instance_prompt": "a sks cat", "class_prompt": "a cat"}
    with pytest.raises(UserError, match=message):
        check_config(Config.model_validate({"data": data, "evaluation": evaluation}))
