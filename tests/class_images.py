"""A class folder whose sampler is a plain function of the image numbers."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import DataConfig
from jaxbooth.data.class_images import ClassImages, generate_missing, generation_settings, open_class_images


class Stopped(Exception):
    """What an interrupted sampler raises."""


def config(folder: Path, total: int = 7, **changes) -> Config:
    data = {"class_prompt": "a cat", "num_class_images": total, "class_dir": folder, "resolution": 64}
    prior = {"sampler": "ddpm", "steps": 20, "guidance_scale": 3.0}
    return Config(
        data=DataConfig(**data | {key: changes.pop(key) for key in list(changes) if key in DataConfig.model_fields}),
        prior=PriorConfig(
            **prior | {key: changes.pop(key) for key in list(changes) if key in PriorConfig.model_fields}
        ),
        **changes,
    )


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def generate_image_batch(indices: list[int]) -> np.ndarray:
    return np.stack([image(index) for index in indices])


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (8, 8, 3))


def generate_flat_at(bad: set[int], colour: tuple[int, int, int] = (40, 40, 40)):
    return lambda indices: np.stack([flat(colour) if index in bad else image(index) for index in indices])


def stopping(generate_batch, batches: int):
    """A sampler that is interrupted after some batches."""
    left = iter(range(batches))

    def generate_until(indices: list[int]) -> np.ndarray:
        if next(left, None) is None:
            raise Stopped
        return generate_batch(indices)

    return generate_until


def opened(config: Config, model: Path = DEMO_MODEL) -> ClassImages:
    """Opens the class folder of a configuration."""
    text_settings = {"clip_skip": config.text.clip_skip, "max_token_chunks": config.text.max_token_chunks}
    text = dataclasses.replace(demo_base().text, **text_settings)
    base = dataclasses.replace(demo_base(), folder=model, text=text)
    settings = generation_settings(base, config.model, config.data.class_prompt, config.resolution, config.prior)
    return open_class_images(config.data.class_dir, settings, config.data.num_class_images)


@functools.cache
def demo_base() -> BaseModel:
    """The embedded model's structure."""
    return BaseModel.read(DEMO_MODEL, "float32")


def generate_all(folder: Path, generate_batch=generate_image_batch, batch: int = 3, total: int = 7):
    classes = opened(config(folder, total))
    generate_missing(classes, generate_batch, batch)
    return classes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())
