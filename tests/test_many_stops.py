"""`train-many` stopped in the middle, and what becomes of it."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jaxbooth.errors import RunFailure
from jaxbooth.many.train import train_many
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.status import read_status
from tests.commands import start

NAMES, STEPS = ("mug", "cup", "jar"), 60
FLAGS = (
    "--lora.rank 2 --train.batch-size 1 --train.learning-rate 1e-3 --train.eps 1e-3 --train.steps 60 "
    "--train.steps-per-dispatch 2 --train.checkpoint-every 10 --prior.method none --data.resolution 32 "
    "--validation.every 1000 --validation.images-per-prompt 1 --validation.steps 2 --validation.prompts a"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in NAMES:
        (folder / name).mkdir()
        for index in range(3):
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name / f"{index}.png")
    entries = [{"name": name, "instance_dir": name, "instance_prompt": f"a sks {name}"} for name in NAMES]
    (folder / "subjects.yaml").write_text(yaml.safe_dump(entries))
    return folder / "subjects.yaml"


def program(model: Path, root: Path) -> dict:
    """What FLAGS say, for the function."""
    return {
        "model": str(model), "run_dir": str(root), "lora": {"rank": 2}, "prior": {"method": "none"},
        "train": {"batch_size": 1, "learning_rate": 1e-3, "eps": 1e-3, "steps": STEPS, "steps_per_dispatch": 2,
                  "checkpoint_every": 10},
        "data": {"resolution": 32},
        "validation": {"every": 1000, "images_per_prompt": 1, "steps": 2, "prompts": ["a"]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(manifest, micro_model, tmp_path_factory) -> Path:
    """A root that was never stopped."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    train_many(manifest, None, 2, **program(micro_model, root))
    return root


@pytest.fixture(scope="module")
def stopped(manifest, micro_model, tmp_path_factory) -> Path:
    """One that was asked to stop while two of three subjects were trained."""
    root = tmp_path_factory.mktemp("stopped") / "runs"
    command = ["train-many", manifest, "--model", micro_model, *FLAGS.split(), "--slots", 2, "--run-dir", root]
    with start(*command) as running:
        while len(read_metrics(root / "mug" / "metrics.jsonl")) < 12 and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        output = running.communicate()[0]
    assert running.returncode == 0, output
    assert "stopped and saved; run the same command again to continue" in output
    return root


def losses(root: Path, name: str) -> list[float]:
    lines = read_metrics(root / name / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("slots", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_it_goes_on_with_another_number_of_slots(whole, stopped, manifest, micro_model, tmp_path, slots):
    root = tmp_path / "runs"
    shutil.copytree(stopped, root)
    done = len(read_metrics(root / "mug" / "metrics.jsonl"))
    assert 12 <= done < STEPS
    [saved] = (root / "checkpoints").glob("*.safetensors")
    train_many(manifest, None, slots, **program(micro_model, root))
    assert not saved.exists()
    for name in NAMES:
        np.testing.assert_allclose(losses(root, name), losses(whole, name), rtol=2e-5)
    assert {status.state for status in read_status(root / "status.jsonl").values()} == {"done"}


def test_a_subject_that_fails_then_begins_where_it_was_saved(stopped, manifest, micro_model, tmp_path):
    root, photos = tmp_path / "runs", tmp_path / "photos"
    shutil.copytree(stopped, root)
    shutil.copytree(manifest.parent, photos)
    (root / "manifest.jsonl").write_text(
        (root / "manifest.jsonl").read_text().replace(str(manifest.parent), str(photos))
    )
    for name in ("mug", "cup"):
        config = root / name / "config.yaml"
        config.write_text(config.read_text().replace(str(manifest.parent), str(photos)))
    whole_photo = (photos / "mug" / "0.png").read_bytes()
    (photos / "mug" / "0.png").write_bytes(whole_photo[:300])
    with pytest.raises(RunFailure, match="2 of 3 done, 1 failed: mug"):
        train_many(photos / "subjects.yaml", None, 2, **program(micro_model, root))
    assert read_status(root / "status.jsonl")["cup"].state == "done"


def test_a_status_that_a_kill_cut_short_is_mended(whole, manifest, micro_model, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(whole, root)
    path = root / "status.jsonl"
    lines = [line for line in path.read_text().splitlines() if json.loads(line) | {"state": "done"} != json.loads(line)]
    path.write_text("\n".join(lines) + '\n{"time": 1.0, "name": "mug", "sta')
    assert read_status(path)["mug"].state == "running"
    train_many(manifest, None, 2, **program(micro_model, root))
    assert read_status(path)["mug"].state == "done"
