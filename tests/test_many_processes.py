"""`train-many` with several processes in one JAX program: each trains its part of the subjects on its own devices."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jaxbooth.many.train import train_many
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.status import read_status
from tests.processes import outputs, start_all

NAMES = ("mug", "cup", "jar")
FLAGS = [
    "--slots", 2, "--lora.rank", 2, "--train.batch-size", 1, "--train.steps", 6, "--train.steps-per-dispatch", 2,
    "--train.checkpoint-every", 4, "--train.learning-rate", 1e-3, "--train.eps", 1e-3, "--data.resolution", 32,
    "--prior.method", "none", "--validation.every", 1000, "--validation.images-per-prompt", 1, "--validation.steps", 2,
    "--validation.prompts", "a sks cup",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Folders of two photos each, and an empty one."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in (*NAMES, "empty"):
        (folder / name).mkdir()
        for index in range(0 if name == "empty" else 2):
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name / f"{index}.png")
    return folder


def write_manifest(path: Path, photos: Path, names=NAMES) -> Path:
    entries = [{"name": name, "instance_dir": str(photos / name), "instance_prompt": "a sks cup"} for name in names]
    path.write_text(yaml.safe_dump(entries))
    return path


def command(manifest: Path, model: Path, root: Path, *flags: object) -> list[object]:
    return ["train-many", manifest, "--model", model, "--run-dir", root, *FLAGS, *flags]


def losses(root: Path, name: str) -> list[float]:
    lines = read_metrics(root / name / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def train_here(manifest: Path, model: Path, root: Path, **changes: object) -> None:
    """Trains in this process, one subject after the other."""
    settings = dict(zip((str(flag)[2:].replace("-", "_") for flag in FLAGS[2::2]), FLAGS[3::2], strict=True))
    settings["validation.prompts"] = [settings["validation.prompts"]]
    train_many(manifest, None, 1, model=str(model), run_dir=str(root), **settings | changes)


@pytest.mark.slow
def test_each_process_trains_its_part_as_one_process_would(photos, micro_model, tmp_path):
    alone = tmp_path / "alone"
    train_here(write_manifest(tmp_path / "two.yaml", photos, ("cup", "jar")), micro_model, alone)
    manifest = write_manifest(tmp_path / "subjects.yaml", photos, (*NAMES, "empty"))
    running = start_all(command(manifest, micro_model, tmp_path / "runs"), 2, devices=2)
    texts = outputs(running)
    assert [process.returncode for process in running] == [1, 1], texts
    assert "3 of 4 done, 1 failed: empty (" in texts[0]
    assert "process 1 of 2: 1 of 2 done, 1 failed: empty (" in texts[1]
    states = {name: status.state for name, status in read_status(tmp_path / "runs" / "status.jsonl").items()}
    assert states == dict.fromkeys(NAMES, "done") | {"empty": "failed"}
    for name in ("cup", "jar"):
        np.testing.assert_allclose(losses(tmp_path / "runs", name), losses(alone, name), rtol=2e-5)
        assert (tmp_path / "runs" / name / "export" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.slow
def test_a_stop_of_one_stops_all_and_the_same_command_goes_on(photos, micro_model, tmp_path):
    root, steps = tmp_path / "runs", 400
    manifest = write_manifest(tmp_path / "subjects.yaml", photos)
    running = start_all(command(manifest, micro_model, root, "--train.steps", steps), 2, devices=2)
    end = time.monotonic() + 300
    while not any(losses(root, name) for name in NAMES) and time.monotonic() < end:
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    texts = outputs(running)
    assert [process.returncode for process in running] == [0, 0], texts
    assert f"stopped and saved; run the same command again to continue {root}." in texts[0]
    assert not re.search("error|Traceback", "".join(texts))
    assert sorted(path.name for path in (root / "checkpoints").glob("*.safetensors")) == [
        "shard-1-of-2.safetensors", "shard-2-of-2.safetensors",
    ]  # fmt: skip
    assert 0 < sum(len(losses(root, name)) for name in NAMES) < 3 * steps
    train_here(manifest, micro_model, root, **{"train.steps": steps})
    assert [len(losses(root, name)) for name in NAMES] == [steps] * 3


def test_a_copy_of_the_base_model_stays_on_one_host(photos, micro_model, tmp_path):
    manifest = write_manifest(tmp_path / "subjects.yaml", photos)
    running = start_all(command(manifest, micro_model, tmp_path / "runs", "--mesh.fsdp", 4), 2, devices=4)
    text = outputs(running)[0]
    assert "--mesh.fsdp 4 x --mesh.tensor 1 reaches over hosts of 2 devices" in text
    assert running[0].returncode == 2
