"""The base model that LoRA files are for: named by the user, or the published one whose layers they adapt."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from jaxbooth.base.model import BaseModel
from jaxbooth.console.messages import info
from jaxbooth.errors import UserError
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import PUBLISHED
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.skeleton import write_skeleton
from jaxbooth.weights.source import Source


class Structure(NamedTuple):
    """What a LoRA file can adapt.

    Attributes:
        networks: component -> structure of the base model's.
        config: of the denoiser.
    """

    networks: dict[str, ModuleDef]
    config: DenoiserConfig


def structure_of(base: BaseModel) -> Structure:
    """Returns the components of a base model that may have adapters."""
    return Structure({name: base.module(name) for name in base.trainable_components()}, base.denoiser_config)


def named_structure(name: str) -> Structure:
    """Returns the structure of a base model that the user names, as `jaxbooth sample` takes it.

    Raises:
        UserError: there is no such model.
    """
    return structure_of(BaseModel.read(resolve_model(Source(name)), "float32"))


def published_structure(name: str) -> Structure:
    """Returns the structure of a published model, of which no weights are needed."""
    with TemporaryDirectory() as folder:
        write_skeleton(name, Path(folder))
        return structure_of(BaseModel.read(Path(folder), "float32", has_tokenizer=False))


def read_files(paths: Sequence[Path], base: str | None) -> tuple[list[LoraWeights], Structure]:
    """Reads LoRA files of one base model, in whatever layout each has.

    Args:
        base: the model; None: the first published one, of `PUBLISHED`, that the first file fits.

    Raises:
        UserError: a file is damaged, fits no published model, or is for another model than the first.
    """
    first, *others = paths
    if base is not None:
        structure = named_structure(base)
        lora = read_lora(first, *structure)
    else:
        lora, structure = read_as_published(first)
    return [lora, *(read_lora(path, *structure) for path in others)], structure


def read_as_published(path: Path) -> tuple[LoraWeights, Structure]:
    """Reads a LoRA file for the first published model that it fits."""
    problems = []
    for name, published in PUBLISHED.items():
        structure = published_structure(name)
        try:
            lora = read_lora(path, *structure)
        except UserError as error:
            problems.append(error)
            continue
        info(f"{path} is read as one for {published.family.title} ({name}); --base names another model.")
        return lora, structure
    fitting = [error for error in problems if "this base model" not in str(error)]
    if fitting:  # damaged, or no LoRA: the same with every model
        raise fitting[0]
    raise UserError(
        f"{path} fits none of the published models ({', '.join(PUBLISHED)}); name its base model with --base."
    )
