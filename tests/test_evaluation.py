"""`jaxbooth evaluate` on a run of six steps: what it generates, keeps, measures and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxbooth.errors import UserError
from jaxbooth.evaluation.evaluate import evaluate
from tests.commands import read_facts, succeed, train


@pytest.fixture(scope="module")
def run(micro_model, tmp_path_factory) -> Path:
    """A run with checkpoints at steps 3 and 6."""
    run_dir = tmp_path_factory.mktemp("measured") / "run"
    succeed(train(run_dir, "--model", micro_model, "--no-export"))
    return run_dir


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a {} in the snow\na red {}\n")
    return path


def measure(run: Path, prompts: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "images_per_prompt": 2,
        "num_class_images": 3,
        "steps": 2,
        "clip": "demo",
        "dino": "none",
        "prompts": str(prompts),
    } | changes
    return json.loads(evaluate(run, **settings).read_text())


@pytest.fixture(scope="module")
def results(run: Path, prompts: Path) -> dict[str, Any]:
    return measure(run, prompts, compare=(f"{run}@3",))


def test_base_model_run_and_others_stand_side_by_side(results, run, micro_model):
    assert [model["step"] for model in results["models"]] == [None, 6, 3]
    assert [model["label"] for model in results["models"]] == [
        f"base model ({micro_model})",
        f"{run}, step 6",
        f"{run}, step 3",
    ]


def test_every_metric_has_a_mean_within_its_interval(results):
    for model in results["models"]:
        assert set(model["metrics"]) == {"clip_i", "clip_t", "pres", "div", "div_subject"}
        for name, one in model["metrics"].items():
            assert one["low"] <= one["mean"] <= one["high"]
            assert one["count"] == (3 if name in ("pres", "div") else 4)
    assert results["skipped"] == {"dino": "no DINO model; name one with --dino FOLDER or a Hub id."}


def test_a_mean_is_that_of_its_prompts(results):
    model = results["models"][1]
    assert [one["prompt"] for one in model["prompts"]] == [
        "a sks cat in the snow",
        "a red sks cat",
        "an emoji of a cat",
    ]
    means = [one["metrics"]["clip_t"]["mean"] for one in model["prompts"][:2]]
    assert model["metrics"]["clip_t"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-6)


def test_differences_are_to_the_base_model(results):
    base, trained = results["models"][0], results["models"][1]
    assert "differences" not in base
    for name, one in trained["differences"].items():
        assert one["mean"] == pytest.approx(trained["metrics"][name]["mean"] - base["metrics"][name]["mean"], abs=1e-6)


def test_images_say_what_made_them(results, run):
    paths = [run / "evaluation" / path for one in results["models"][1]["prompts"] for path in one["images"]]
    assert len(paths) == 2 + 2 + 3
    facts = read_facts(paths[1])
    assert (facts["prompt"], facts["seed"], facts["index"], facts["step"]) == ("a sks cat in the snow", "0", "1", "6")


def test_existing_images_are_kept_and_only_the_others_are_generated(
    results, run, micro_model, prompts, tmp_path, capsys
):
    shutil.copytree(run / "evaluation", tmp_path / "evaluation")
    (tmp_path / "evaluation" / "images" / "run-000006" / "001-001.png").unlink()
    again = measure(run, prompts, out=tmp_path / "evaluation")
    output = " ".join(capsys.readouterr().out.split())
    assert "step 6: 1 image generated, 6 found" in output
    assert f"base model ({micro_model}): 0 images generated, 7 found" in output
    assert again["models"][1]["metrics"] == results["models"][1]["metrics"]


def test_images_made_otherwise_are_not_mixed_in(results, run, prompts):
    with pytest.raises(UserError, match=r"base holds images with another steps .*choose another --out"):
        measure(run, prompts, steps=3)


def test_a_folder_of_something_else_is_left_alone(run, prompts, tmp_path):
    image = tmp_path / "images" / "base" / "000-000.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        measure(run, prompts, out=tmp_path)
    assert image.read_bytes() == b"mine"


def test_without_a_class_prompt_the_class_is_left_out_and_that_is_said(run, tmp_path, prompts, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["data"]["class_prompt"], settings["prior"]["weight"] = None, 0
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    results = measure(tmp_path / "run", prompts)
    assert set(results["models"][1]["metrics"]) == {"clip_i", "clip_t", "div_subject"}
    assert results["skipped"]["pres"] == "the run has no class prompt."
    assert "PRES is left out: the run has no class prompt." in capsys.readouterr().out


def test_prompts_without_the_subject_are_warned_of(run, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat in the snow\n")
    measure(run, path, images_per_prompt=1, num_class_images=1, out=tmp_path / "out")
    assert "the subject is not named in 1 prompt, such as 'a cat in the snow'" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 4}, r"has no checkpoint of step 4; there are 3, 6 \(--step\)"),
        ({"clip": "none", "dino": "none"}, "--clip and --dino are both none"),
        ({"prompts": "nowhere.txt"}, r"--prompts nowhere\.txt cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run, prompts, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(run, out=tmp_path / "out", **{"prompts": str(prompts)} | changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path, prompts):
    with pytest.raises(UserError, match="is not a run folder"):
        measure(tmp_path, prompts)
