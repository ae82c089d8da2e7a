"""Base models to choose from, and how large the images of one are, read without its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxbooth.assets import ASSETS, EMBEDDED_MODELS, shipped_configs
from jaxbooth.base.components import (
    native_resolution,
    read_component_config,
    read_denoiser_config,
    read_model_index,
    resolution_multiple,
)
from jaxbooth.config.run_config import Config
from jaxbooth.diffusion.schedule import read_schedule
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.text import read_json, read_text
from jaxbooth.weights.architectures import PUBLISHED

ASSUMED_SIDE = 512  # of a model that nothing is known of before it is read
ASSUMED_MULTIPLE = 64


class Choice(NamedTuple):
    """Something to choose, and how it is called."""

    value: str
    label: str


class ImageSides(NamedTuple):
    """How large the images of a base model are.

    Attributes:
        native: pixels of a side that it was trained at.
        multiple: that a side has to be a multiple of.
        is_known: whether the model said so.
    """

    native: int
    multiple: int
    is_known: bool = True


def shipped_choices() -> list[Choice]:
    """Returns the shipped configurations, described by the first sentence of their comments; the demos come last."""
    names = sorted(path.stem for path in shipped_configs().glob("*.yaml"))
    names.sort(key=lambda name: name in EMBEDDED_MODELS)
    return [Choice(name, f"{describe_config(name)} ({name})") for name in names]


def describe_config(name: str) -> str:
    """Returns the first sentence of a shipped configuration's comment."""
    first = read_text(shipped_configs() / f"{name}.yaml").partition("\n")[0]
    return first.removeprefix("#").strip().partition(". ")[0].rstrip(".")


def model_choices(models: Sequence[Path], roots: Sequence[Path]) -> list[Choice]:
    """Returns local models, called by their paths below the roots."""
    return [Choice(str(path), relative_label(path, roots)) for path in models]


def relative_label(path: Path, roots: Sequence[Path]) -> str:
    """Returns a path below its root, with the root's name."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return str(path) if root is None else str(root.name / path.relative_to(root))


def image_sides(config: Config) -> ImageSides:
    """Returns the image sides of a run's base model."""
    folder = config_folder(config.model)
    try:
        return read_sides(folder) if folder else ImageSides(ASSUMED_SIDE, ASSUMED_MULTIPLE, False)
    except (UserError, OSError):  # whoever reads the model says what is wrong with it
        return ImageSides(ASSUMED_SIDE, ASSUMED_MULTIPLE, False)


def config_folder(model: str) -> Path | None:
    """Returns the folder that holds a model's configurations, if they can be read without asking the Hub."""
    folder = EMBEDDED_MODELS.get(model) or local_path(model)
    if (folder / "model_index.json").is_file():
        return folder
    return ASSETS / "families" / PUBLISHED[model].name if model in PUBLISHED else None


def read_sides(folder: Path) -> ImageSides:
    """Reads the image sides of a diffusers folder, of which the configurations are enough.

    Raises:
        UserError: one of them cannot be used.
    """
    family, denoiser = read_denoiser_config(folder, read_model_index(folder))
    vae = read_component_config(family.vae.config, folder / "vae")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    is_flow = read_schedule(read_json(scheduler), str(scheduler)).is_flow
    return ImageSides(native_resolution(denoiser, vae, is_flow), resolution_multiple(denoiser, vae))
