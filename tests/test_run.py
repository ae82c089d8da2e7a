"""Whole runs through the command line: what they leave behind, resuming, interruption, failure."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.config.load import load_config
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.restore import restore_result
from tests import commands
from tests.commands import jaxbooth, read_facts, succeed


@pytest.fixture(scope="module")
def train(micro_model):
    """Trains the small model, compiled as for users: bits depend on it."""

    def run(run_dir: Path, *extra: object, steps: int = 6):
        return commands.train(run_dir, "--model", micro_model, *extra, steps=steps, flags="")

    return run


@pytest.fixture(scope="module")
def straight(train, tmp_path_factory) -> tuple[Path, str]:
    """A run of six steps without a stop, and what it printed."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    return run_dir, succeed(train(run_dir))


def weights(run_dir: Path, base: BaseModel, mesh) -> dict[str, np.ndarray]:
    run = RunFolder(run_dir)
    params, _ = restore_result(run, load_config(run.config), base, mesh)
    return jax.device_get(params["unet"])


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl")]


def test_a_run_says_what_it_will_do_and_did(straight, micro_model):
    _, output = straight
    generated = f"0 found, 3 to generate from {micro_model}, prompt 'an emoji of a cat'"
    assert f"class images: 3 class images ({generated})" in output
    assert "prior: class-images, weight 1 (" in output
    assert "identifier 'sks': 2 tokens, sk + s" in output
    assert "6 steps x (2 + 2) rows = 12 instance views, 2.4 views of each image; learning rate 0.0002" in output
    assert "exported:" in output


def test_a_run_folder_holds_everything(straight):
    run_dir, _ = straight
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["steps"] == 6
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"3", "6"}
    assert {path.name for path in (run_dir / "samples").iterdir()} == {"step_000000.png", "step_000006.png"}
    assert len(list((run_dir / "prior").glob("class-*.png"))) == 3
    assert json.loads((run_dir / "prior" / "manifest.json").read_text())["settings"]["prompt"] == "an emoji of a cat"
    assert list((run_dir / "tensorboard").glob("events*"))
    assert (run_dir / "contact_sheet.png").exists()
    assert len(json.loads((run_dir / "images.json").read_text())["class"]) == 3
    assert {p.name for p in (run_dir / "export").iterdir()} == {path.name for path in DEMO_MODEL.iterdir()}
    assert not list(run_dir.rglob(".*"))


def test_every_step_is_logged(straight):
    lines = read_metrics(straight[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    expected = {"step", "loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate", "images_per_second"}
    assert all(set(line) == expected for line in lines)


def test_sample_grids_say_what_made_them(straight):
    facts = read_facts(straight[0] / "samples" / "step_000006.png")
    assert json.loads(facts["prompts"]) == ["an emoji of a sks cat"]
    assert (facts["step"], facts["seed"], facts["sampler"], facts["guidance_scale"]) == ("6", "0", "dpmpp_2m", "4.0")


def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(train, straight, micro, mesh, tmp_path):
    succeed(train(tmp_path / "run", steps=3))
    output = succeed(train(tmp_path / "run", "--train.steps-per-dispatch", 3))
    assert "resumed at step 3 of 6" in output
    assert losses(tmp_path / "run") == losses(straight[0])
    expected = weights(straight[0], micro, mesh)
    for name, value in weights(tmp_path / "run", micro, mesh).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_complete_run_says_so_and_what_to_raise(train, straight):
    output = succeed(train(straight[0]))
    assert "complete at step 6 of 6; raise --train.steps" in output


@pytest.mark.slow
def test_a_half_written_checkpoint_is_ignored(train, straight, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight[0], run_dir)
    config = (run_dir / "config.yaml").read_text().replace(str(straight[0]), str(run_dir))
    (run_dir / "config.yaml").write_text(config)
    half = run_dir / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(run_dir / "checkpoints" / "6" / "state", half / "state")
    next((half / "state").rglob("manifest.ocdbt")).unlink()
    assert "resumed at step 6 of 7" in succeed(train(run_dir, steps=7))


def test_a_run_and_its_base_are_sampled_alike(straight, micro_model, tmp_path):
    flags = ["--prompt", "an emoji of a sks cat", "--num", 2, "--steps", 2, "--guidance-scale", 4]
    for source, out in ((straight[0], "run"), (micro_model, "base")):
        succeed(jaxbooth("sample", source, *flags, "--out", tmp_path / out))
    facts = read_facts(tmp_path / "run" / "0-001.png")
    assert (facts["prompt"], facts["seed"], facts["index"], facts["step"]) == ("an emoji of a sks cat", "0", "1", "6")
    assert read_facts(tmp_path / "base" / "0-001.png")["step"] == "0"
    assert {path.name for path in (tmp_path / "base").iterdir()} == {"0-000.png", "0-001.png", "contact_sheets"}
