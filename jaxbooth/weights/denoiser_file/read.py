"""A file of a transformer alone, in: it becomes the transformer's component of a diffusers folder."""

import shutil
from functools import partial
from pathlib import Path

from jaxbooth.console.messages import warn
from jaxbooth.errors import UserError
from jaxbooth.weights.denoiser_file.identify import Denoiser
from jaxbooth.weights.denoiser_file.layout import layout_of, read_denoiser_config, torch_shapes
from jaxbooth.weights.denoiser_file.names import OTHER_PARTS, DenoiserFile
from jaxbooth.weights.names import canonical
from jaxbooth.weights.shards import write_shards
from jaxbooth.weights.single_file import Checkpoint, any_matches, check_complete

WEIGHT_FILE = "diffusion_pytorch_model.safetensors"


def open_denoiser(file: Path, spec: DenoiserFile) -> Checkpoint:
    """Opens a file of a transformer alone; its tensors answer to their usual names."""
    return Checkpoint(file, allow_pickle=False, rename=partial(canonical, renames=spec.renames))


def convert_denoiser(denoiser: Denoiser, config: Path, out: Path) -> None:
    """Writes a transformer's component of a diffusers folder. Every tensor keeps its dtype and content.

    Args:
        config: the `config.json` of a model of the same size.
        out: does not exist yet.

    Raises:
        UserError: the file is damaged or incomplete, or the configuration is of another size.
    """
    spec = denoiser.family.denoiser
    names = denoiser.family.denoiser_file
    assert names is not None
    typed = read_denoiser_config(spec, config)
    if typed.text_width != denoiser.text_width:
        raise UserError(
            f"{denoiser.file} takes prompt embeddings of {denoiser.text_width} numbers, and {config} is of a model "
            f"that takes {typed.text_width}; name a model of the file's size with --components."
        )
    checkpoint = open_denoiser(denoiser.file, names)
    tensors = layout_of(checkpoint.stored, torch_shapes(spec, typed), names)
    check_complete(checkpoint, tensors, "transformer")
    if any_matches(OTHER_PARTS, checkpoint.tensors.keys()):
        warn(f"{denoiser.file}: only its transformer is read; text encoder and VAE are those of --components.")
    out.mkdir()
    shutil.copyfile(config, out / "config.json")
    parts = [checkpoint.tensor(tensor, source, source) for tensor in tensors for source in tensor.sources]
    write_shards(out / WEIGHT_FILE, parts, {"format": "pt"})
