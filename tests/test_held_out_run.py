"""Runs that hold images out: what they log, that an interruption changes nothing of it, and that they end by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import succeed, train
from tests.test_disk import events
from tests.test_held_out_loss import configure, measure

NAMES = [
    f"validation/{group}_loss{part}"
    for group in ("subject", "class")
    for part in ("", "_t0-249", "_t250-499", "_t500-749", "_t750-999")
]
FLAGS = (
    "--data.hold-out", 2, "--validation.every", 2, "--train.checkpoint-every", 2,
    "--train.ema-decay", 0.9, "--train.text-encoder",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(micro_model, tmp_path_factory):
    """A run of six steps that trains the text encoder too and averages its weights."""
    run_dir = tmp_path_factory.mktemp("held out") / "whole"
    succeed(train(run_dir, "--model", micro_model, *FLAGS))
    return run_dir


def losses(line: dict[str, float]) -> dict[str, float]:
    """What a line says of held-out images."""
    return {name: value for name, value in line.items() if name.startswith("validation/")}


def test_both_logs_have_the_losses_of_a_validation(whole):
    steps, validations = read_metrics(whole / "metrics.jsonl"), read_metrics(whole / "validation.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in validations] == [0, 2, 4, 6]
    for line in validations:
        assert list(losses(line)) == NAMES
        assert "eval/drift" in line
    for line in steps:
        at = [losses(other) for other in validations if other["step"] == line["step"]]
        assert losses(line) == (at[0] if at else {})
    assert len({line[NAMES[0]] for line in validations}) == 4


def points(folder: Path, name: str) -> list[int]:
    """The steps of a curve in TensorBoard's event files."""
    return [event.step for event in events(folder) for value in event.summary.value if value.tag == name]


def test_they_are_curves_in_tensorboard_with_one_point_for_each_validation(whole):
    assert all(points(whole / "tensorboard", name) == [0, 2, 4, 6] for name in NAMES)
    assert points(whole / "tensorboard", "loss") == [1, 2, 3, 4, 5, 6]


def test_the_names_are_written_down(whole):
    names = json.loads((whole / "images.json").read_text())
    assert [len(names["instance"]), len(names["held_out"])] == [3, 2]
    assert not set(names["instance"]) & set(names["held_out"])


def test_the_last_loss_is_that_of_the_exported_model(whole, mesh):
    found = measure(configure(whole / "export"), mesh, np.load(whole / "base_latents.npy"))
    last = losses(read_metrics(whole / "metrics.jsonl")[-1])
    assert found == pytest.approx(last, rel=1e-6)


def test_an_interruption_changes_no_bit_and_other_sample_images_do_not_either(whole, micro_model, tmp_path):
    """The run is as it was when step 4 had been saved and not validated yet."""
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    log = (resumed / "validation.jsonl").read_text().splitlines(keepends=True)
    (resumed / "validation.jsonl").write_text("".join(log[:2]))
    others = ("--validation.images-per-prompt", 2, "--validation.prompts", "a red apple")
    assert "resumed at step 4 of 6" in succeed(train(resumed, "--model", micro_model, *FLAGS, *others))
    for log in ("metrics.jsonl", "validation.jsonl"):
        before, after = read_metrics(whole / log), read_metrics(resumed / log)
        assert [line["step"] for line in after] == [line["step"] for line in before]
        assert [losses(line) for line in after] == [losses(line) for line in before]
    assert [line["loss"] for line in read_metrics(resumed / "metrics.jsonl")] == [
        line["loss"] for line in read_metrics(whole / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_training_ends_when_the_loss_gets_no_better_and_keeps_the_best(micro_model, tmp_path):
    # Steps so small that only the smallest weights change, which no loss shows.
    still = ("--train.learning-rate", 1e-12, "--no-export", "--train.max-checkpoints", 1)
    watch = ("--evaluation.keep-best", "validation_loss", "--evaluation.patience", 2)
    flags = ("--model", micro_model, "--data.hold-out", 1, "--validation.every", 2, *still, *watch)
    output = succeed(train(tmp_path / "run", *flags, "--train.checkpoint-every", 50, steps=60))
    found = [line["validation/subject_loss"] for line in read_metrics(tmp_path / "run" / "validation.jsonl")]
    assert found == found[:1] * 4
    assert "ended early at step 6: 2 validations without a better validation_loss" in output
    assert f"best validation_loss: {found[0]:.4f} at step 2, which is kept (--step 2)" in output
    assert {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()} == {2, 6}
    again = succeed(train(tmp_path / "run", *flags, "--train.checkpoint-every", 50, steps=60))
    assert "is complete at step 6 of 60; raise --evaluation.patience to train on" in again
