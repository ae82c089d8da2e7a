"""What a user must tell another program about an export, or must not give it: sentences for the terminal and the card.

Everything that an export can say in its own files is said there, and has no note.
"""

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.models.lora import target_layers
from jaxbooth.weights.diffusers_write import ExportDtype, ExportFormat

OUT, MLP = "out_proj", ("fc1", "fc2")  # a text encoder's output projection of attention, and its perceptron


def reader_notes(config: Config, base: BaseModel, format: ExportFormat, dtype: ExportDtype) -> list[str]:
    """Returns the notes of an export, each one a sentence without its full stop.

    Args:
        base: with the run's adapters and new tokens.
    """
    notes = []
    if config.text.clip_skip:
        skip = config.text.clip_skip
        notes.append(f"set clip_skip={skip} in diffusers, or clip skip {skip + 1} in a web UI: it was trained so")
    if format == "diffusers" and dtype not in ("float32", "base"):
        notes.append(f"open it in PyTorch with torch_dtype=torch.{dtype}, or its parts disagree on the dtype")
    if format != "diffusers" and base.text.eos_token_id_to_set is not None:
        notes.append(
            f"in diffusers, set `{end_token_line(base)}` before drawing: the base model's configuration names "
            "2 as the end token, and the pooled text would be read at a placeholder token instead"
        )
    if format == "lora":
        notes += kohya_notes(config, base)
    return notes


def end_token_line(base: BaseModel) -> str:
    """Returns the line of Python that makes diffusers read the pooled text at the end token."""
    return f"pipe.{base.text.encoders[-1].name}.text_model.eos_token_id = {base.text.eos_token_id_to_set}"


def kohya_notes(config: Config, base: BaseModel) -> list[str]:
    """Returns what diffusers makes of a LoRA's kohya file, where that is not what was trained."""
    for_diffusers = "give diffusers pytorch_lora_weights.safetensors, and the kohya file to everything else: diffusers "
    if config.lora.dora:
        return [for_diffusers + "leaves a DoRA's magnitudes out of the latter and computes something else"]
    trained = base.text_encoder_names if config.train.text_encoder else ()
    unread = [
        name for name in trained if not kohya_is_read(target_layers(base.module(name), name, config.lora_targets))
    ]
    if unread:
        return [for_diffusers + f"misreads the latter's {' and '.join(unread)}, which has no adapter on {OUT}"]
    return []


def kohya_is_read(layers: list[str]) -> bool:
    """Whether diffusers 0.42 reads a text encoder's adapters right from kohya's layout.

    It tells the spelling by `out_proj`, and without it takes everything for the perceptron's.
    """
    kinds = {layer.rpartition(".")[2] for layer in layers}
    return OUT in kinds or kinds <= set(MLP)
