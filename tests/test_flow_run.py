"""Whole runs of flow models: two subjects with masks in two shapes, resumed bit for bit; full fine-tuning."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import jaxbooth, succeed
from tests.xla import ALIKE

STEPS, SAVED = 20, 10
SIZES = {"cats": [(32, 32), (24, 40)], "dogs": [(32, 32)]}  # width and height
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {
        "lora": {"rank": 2},
        "prior": {"method": ["class-images", "output-preservation", "blank-prompt"], "target": "frozen"},
        "loss": {"outside_mask": "frozen", "timestep_sampling": "logit_normal", "timestep_shift": "resolution"},
        "text": {"caption_dropout": 0.1, "shuffle_tags": True, "tag_dropout": 0.2, "caption_variants": 4},
    },
    "full": {
        "loss": {"weighting": "cosmap"},
        "prior": {"method": ["output-preservation", "weight-anchor"]},
        "train": {"remat": "blocks", "gradient_accumulation_steps": 2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Folders of two subjects; alpha channels are masks. One image has two captions."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for subject, sizes in SIZES.items():
        (folder / subject).mkdir()
        for index, (width, height) in enumerate(sizes):
            Image.fromarray(draw.integers(0, 256, (height, width, 4), np.uint8)).save(folder / subject / f"{index}.png")
    (folder / "cats" / "0.txt").write_text("a sks cats, noise, in colour\nsks, square")
    return folder


def configuration(model: Path, images: Path, run_dir: Path, kind: str, steps_per_dispatch: int) -> Path:
    """Writes the configuration of a run."""
    subjects = [
        {"instance_dir": str(images / name), "instance_prompt": f"a sks {name}", "class_prompt": f"a {name}"}
        for name in SIZES
    ]
    settings = SETTINGS[kind]
    train = {"batch_size": 2, "checkpoint_every": SAVED, "ema_decay": 0.9, "steps": STEPS, "learning_rate": 1e-3}
    content = settings | {
        "model": str(model), "seed": 1, "run_dir": str(run_dir), "prior": {"steps": 2} | settings.get("prior", {}),
        "data": {"subjects": subjects, "num_class_images": 2, "resolution": 32, "masks": True, "buckets": True},
        "train": train | settings.get("train", {}) | {"steps_per_dispatch": steps_per_dispatch},
        "validation": {"every": 100, "images_per_prompt": 1, "steps": 2, "prompts": ["a sks cats"]},
    }  # fmt: skip
    path = run_dir.parent / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def exported(run_dir: Path) -> dict[str, np.ndarray]:
    """Every tensor of the export that was trained."""
    lora = run_dir / "export" / "pytorch_lora_weights.safetensors"
    files = [lora] if lora.exists() else sorted((run_dir / "export" / "transformer").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("family", "kind"), [("zimage", "lora"), pytest.param("klein", "full", marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_one_that_never_stopped_whatever_its_dispatches(
    family, kind, flow_folder, images, tmp_path
):
    model, whole, resumed = flow_folder(family), tmp_path / "whole", tmp_path / "resumed"
    output = succeed(jaxbooth("train", configuration(model, images, whole, kind, steps_per_dispatch=10), flags=ALIKE))
    assert "exported: " in output
    shutil.copytree(whole, resumed)  # as it was after the first steps
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    shutil.rmtree(resumed / "export")
    output = succeed(jaxbooth("train", configuration(model, images, resumed, kind, steps_per_dispatch=1), flags=ALIKE))
    assert f"resumed at step {SAVED} of {STEPS}" in output
    losses = [[line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (whole, resumed)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
    expected, found = exported(whole), exported(resumed)
    assert set(found) == set(expected)
    assert expected
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
