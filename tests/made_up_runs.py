"""Run folders as a training leaves them, made up in a moment: for tests of what reads them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config
from jaxbooth.data.image_grid import image_grid
from jaxbooth.storage.files import write_json, write_png, write_text

PROMPTS = ("a photo of a sks cat", "a photo of a cat")


def photo(seed: int, side: int) -> np.ndarray:
    """Returns (side, side, 3) uint8 that is about as hard to compress as a photo: shapes, shading and grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    return np.clip(large + rng.normal(0, 6, large.shape), 0, 255).astype(np.uint8)


def made_up_run(
    folder: Path,
    steps: int = 40,
    logged: int | None = None,
    prompts: tuple[str, ...] = PROMPTS,
    samples: tuple[int, ...] = (0, 20, 40),
    side: int = 64,
    **sections: dict[str, Any],
) -> Path:
    """Writes a run folder and returns it.

    Args:
        logged: last step in its metrics; default: `steps`.
        prompts: of its sample grids, with two images each.
        samples: steps of the grids.
        side: of all images, in pixels.
        sections: of the configuration, beside what every run has.
    """
    data = {"instance_dir": "/photos", "instance_prompt": prompts[0], "class_prompt": "a photo of a cat"}
    defaults = {"data": data | {"resolution": side}, "train": {"steps": steps}, "validation": {"images_per_prompt": 2}}
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    config = Config.model_validate({"run_dir": str(folder)} | merged)
    write_text(folder / "config.yaml", dump_config(config))
    write_metrics(folder, logged or steps, has_prior=config.prior.uses_class_images)
    for step in samples:
        write_grid(folder, step, prompts, side)
    write_png(folder / "contact_sheet.png", image_grid([photo(9, side)], [prompts[0]], 1), {})
    if config.prior.uses_class_images:
        for index in range(3):
            write_png(folder / "prior" / f"class-{index:05d}.png", Image.fromarray(photo(100 + index, side)), {})
    write_text(folder / "checkpoints" / str(steps) / "state", "x" * 1000)
    return folder


def write_metrics(folder: Path, steps: int, has_prior: bool = True) -> None:
    """Writes metrics of every step, and figures of two validations."""
    rows = []
    for step in range(1, steps + 1):
        instance, prior = 0.2 / math.sqrt(step), 0.1 * has_prior
        losses = {"loss": instance + prior, "instance_loss": instance, "prior_loss": prior}
        rows.append({"step": step, **losses, "grad_norm": 0.5, "learning_rate": 5e-6, "images_per_second": 4.0})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    figures = [{"step": step, "eval/drift": 0.01 * step, "eval/subject_distance": 0.1} for step in (0, steps)]
    write_text(folder / "validation.jsonl", "".join(json.dumps(row) + "\n" for row in figures))


def write_grid(folder: Path, step: int, prompts: tuple[str, ...], side: int) -> None:
    """Writes the sample grid of a step: two images of each prompt."""
    images = [photo(1000 * step + index, side) for index in range(2 * len(prompts))]
    labels = [prompt for prompt in prompts for _ in range(2)]
    facts = {"prompts": json.dumps(prompts), "seed": 0, "step": step, "sampler": "dpmpp_2m", "negative_prompt": ""}
    write_png(folder / "samples" / f"step_{step:06d}.png", image_grid(images, labels, 2), facts)


def evaluated(folder: Path, models: tuple[str, ...] = ("base", "cat-000040"), side: int = 64) -> Path:
    """Writes an evaluation of two metrics on two prompts into a run folder, and returns that."""
    titles = {"clip_i": ("CLIP-I", "subject fidelity", "higher"), "pres": ("PRES", "class kept apart", "lower")}
    definitions = {
        name: {
            "title": title,
            "measures": measures,
            "better": better,
            "group": "subject",
            "features": "clip",
            "text": "How.",
        }
        for name, (title, measures, better) in titles.items()
    }
    prompts = [("a sks cat in the snow", "subject"), ("a photo of a cat", "class")]
    found = []
    for number, name in enumerate(models):
        score = {"mean": 0.7 + number / 10, "low": 0.68 + number / 10, "high": 0.73 + number / 10, "count": 4}
        images = [f"images/{name}/{index:03d}-000.png" for index in range(len(prompts))]
        for index, path in enumerate(images):
            write_png(folder / "evaluation" / path, Image.fromarray(photo(number * 10 + index, side)), {})
        rows = [
            {"prompt": prompt, "group": group, "images": [path], "metrics": {"clip_i": score}}
            for (prompt, group), path in zip(prompts, images, strict=True)
        ]
        facts = {"name": name, "label": "base model" if name == "base" else name, "source": name, "step": number * 40}
        difference = {"mean": 0.1, "low": 0.05, "high": 0.15, "count": 4}
        own = {"differences": dict.fromkeys(titles, difference)} if number else {}
        metrics = dict.fromkeys(titles, score)
        found.append({**facts, "images": f"images/{name}", "metrics": metrics, "prompts": rows, **own})
    content = {
        "format": 2,
        "settings": {"prompts": "live", "images_per_prompt": 1, "seed": 0, "sampler": "dpmpp_2m"},
        "feature_models": {"clip": {"name": "tiny-emoji", "fingerprint": "0"}, "dino": None},
        "definitions": definitions,
        "skipped": {"dino": "no DINO model was named; use --dino FOLDER or a Hub id."},
        "models": found,
    }
    write_json(folder / "evaluation" / "evaluation.json", content)
    return folder
