"""Resuming with everything on at once: adapters, tokens in phases, buckets, an average, a frozen target, captions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import jaxbooth, succeed

pytestmark = pytest.mark.slow

SETTINGS = {
    "seed": 1,
    "train": {"batch_size": 2, "checkpoint_every": 12, "ema_decay": 0.9, "text_encoder": True, "steps": 24},
    "lora": {"rank": 4, "kind": "dora"},
    "text": {"placeholder_tokens": ["<sks>"], "token_training": "pivotal", "token_share": 0.3, "learning_rate": 5e-5,
             "vectors_per_token": 2, "caption_dropout": 0.1, "shuffle_tags": True, "tag_dropout": 0.2, "keep_tags": 1,
             "trigger_word": "<sks>", "caption_variants": 4},
    "prior": {"method": ["class-images", "output-preservation", "weight-anchor"], "target": "frozen"},
    "validation": {"every": 100, "images_per_prompt": 1, "steps": 2},
}  # fmt: skip


def noise(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """A folder of random images of the given widths and heights."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index, (width, height) in enumerate(sizes):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width * 3, height * 3)).save(folder / f"{index}.png")
    return folder


def configuration(root: Path, run: str) -> Path:
    """Writes the configuration of a run."""
    data = {
        "instance_dir": str(root / "images"), "instance_prompt": "an emoji of a <sks> cat", "buckets": True,
        "class_dir": str(root / "class"), "class_prompt": "an emoji of a cat", "num_class_images": 4,
    }  # fmt: skip
    path = root / f"{run}.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"data": data, "run_dir": str(root / run)}))
    return path


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    noise(tmp_path / "images", [(64, 64), (96, 48), (48, 96)])
    (tmp_path / "images" / "0.txt").write_text("an emoji of a cat, noise, in colour\na <sks> cat, square")
    noise(tmp_path / "class", [(64, 64)] * 4)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    succeed(jaxbooth("train", configuration(tmp_path, "whole")))
    shutil.copytree(whole, resumed)  # as it was after step 12
    shutil.rmtree(resumed / "checkpoints" / "24")
    shutil.rmtree(resumed / "export")
    assert "resumed at step 12 of 24" in succeed(jaxbooth("train", configuration(tmp_path, "resumed")))
    losses = [[line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    files = {"learned_embeds.safetensors", "pytorch_lora_weights.safetensors"}
    assert files < {path.name for path in (whole / "export").iterdir()}
    for name in files:
        expected, found = (load_file(run / "export" / name) for run in (whole, resumed))
        assert set(found) == set(expected)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
