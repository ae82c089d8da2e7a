"""The prompts of a run, which are known before it begins: where the text encoder is dropped, they are encoded ahead."""

from typing import NamedTuple

from jax.sharding import Mesh

from jaxbooth.base.encoded_prompts import EncodedPrompts, encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.metrics.prompts import few_prompts
from jaxbooth.runs.held_out_latents import held_out_captions
from jaxbooth.runs.inputs import RunInputs, scan_class_folders
from jaxbooth.runs.validation import distinct, measured_prompts


class RunPrompts(NamedTuple):
    """The prompts of a run, encoded ahead, or None where they are encoded as they are needed.

    Attributes:
        captions: of the images that are trained on.
        sampled: of the images that are generated; the first is the empty negative prompt.
        held_out: of the images whose loss is measured; in a group of their own, so that other prompts change no bit.
    """

    captions: EncodedPrompts | None = None
    sampled: EncodedPrompts | None = None
    held_out: EncodedPrompts | None = None


def encode_run_prompts(config: Config, base: BaseModel, inputs: RunInputs, mesh: Mesh) -> RunPrompts:
    """Encodes the prompts of a run ahead, where its text encoder is dropped before the denoiser is loaded."""
    if not base.text.runs_once:
        return RunPrompts()
    groups = [training_captions(config, inputs), sampled_prompts(config, inputs)]
    groups += [held_out_captions(inputs, config.subjects)] if inputs.held_out_images else []
    return RunPrompts(*encode_ahead(base, mesh, *groups))


def training_captions(config: Config, inputs: RunInputs) -> list[str]:
    """Returns the distinct captions of instance and class images; generated ones have the class prompt."""
    started = [classes for classes in inputs.classes if classes.found]
    folders = scan_class_folders(config.text.placeholder_tokens, started)
    files = [*inputs.images, *(file for folder in folders for file in folder.images)]
    captions = [prompt for file in files for prompt in file.prompts]
    prompts = [classes.settings["prompt"] for classes in inputs.classes]
    empty = [""] if config.needs_empty_caption else []
    return distinct([*captions, *prompts, *empty])


def sampled_prompts(config: Config, inputs: RunInputs) -> list[str]:
    """Returns the distinct prompts of class images, sample grids and evaluations, and the empty negative prompt."""
    subjects = config.subjects
    evaluated = few_prompts(subjects, config.evaluation.num_prompts) if config.evaluation.every else []
    generated = [classes.settings["prompt"] for classes in inputs.classes]
    measured = measured_prompts(config.validation, subjects)
    return distinct(["", *generated, *measured, *(prompt.text for prompt in evaluated)])
