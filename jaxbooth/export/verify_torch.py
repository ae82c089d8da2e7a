"""An export, opened in PyTorch diffusers: does it compute what jaxbooth computes with what was trained?"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING, TextEmbeddings
from jaxbooth.base.trainable import shard_params
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.export.export import formats_of
from jaxbooth.export.format import Export, ExportFormat
from jaxbooth.export.torch_denoising import DenoisingStep, torch_step
from jaxbooth.export.written_model import WrittenModel
from jaxbooth.params import Params, full_precision, join

# Of the largest output. Both sides compute in float32 with the weights as they were written, so that what remains is
# the order of float32 sums: about 1e-6 for small models, 1e-5 for SDXL, where a wrong layer makes 1e-1.
TOLERANCE = 1e-3
LATENTS = 4  # latents, or tokens, along a side at the denoiser's innermost level: a small image exercises every weight


def check_torch(format: ExportFormat) -> None:
    """Refuses `--verify` where it cannot work.

    Raises:
        UserError: PyTorch, diffusers or (for a LoRA) peft is not installed.
    """
    missing = [name for name in format.torch_packages if find_spec(name) is None]
    if missing:
        raise UserError(f"--verify needs {' and '.join(missing)}: pip install 'jaxbooth[torch]'.")


def compare_with_torch(export: Export, prompt: str) -> str:
    """Encodes a prompt and denoises fixed latents once on both sides, in float32; says how far apart they are.

    Args:
        prompt: placeholder tokens that it lacks are added.

    Raises:
        UserError: see `check_torch`.
        RunFailure: diffusers does not open the export, or computes something else.
    """
    check_torch(export.format)
    exact = in_float32(export.base)
    height, width, channels = exact.latent_shape(*(LATENTS * exact.resolution_multiple,) * 2)
    latents = np.random.default_rng(0).normal(size=(1, height, width, channels)).astype(np.float32)
    middle = jnp.array([exact.schedule.num_train_timesteps // 2], jnp.int32)
    timesteps = np.array(exact.schedule.network_timesteps(middle))
    prompt = " ".join([prompt, *(token for token in export.tokens if token not in prompt)])
    step = DenoisingStep(prompt, latents, timesteps, time_ids_of(exact, latents))
    params = shard_params(written_params(export), export.mesh)
    ours = [np.asarray(part) for part in own_step(exact, params, step)]
    del params
    try:
        with torch_pipeline(export) as pipe:
            theirs = torch_step(pipe, exact, step)
    except Exception as error:  # whatever keeps it from working is the finding
        raise RunFailure(f"{export.out} does not work in PyTorch diffusers: {type(error).__name__}: {error}") from error
    text, output = (relative_difference(found, expected) for found, expected in zip(theirs, ours, strict=True))
    if not (text <= TOLERANCE and output <= TOLERANCE):
        raise RunFailure(
            f"{export.out}: PyTorch diffusers disagrees with what was trained: a prompt's embeddings differ by "
            f"{text:.0e} of their scale, and a denoising step by {output:.0e} (at most {TOLERANCE:.0e} may be "
            "rounding)."
        )
    return f"PyTorch diffusers agrees: a denoising step differs by {output:.0e} of its scale, a prompt by {text:.0e}"


def in_float32(base: BaseModel) -> BaseModel:
    """Returns a base model with its adapters and placeholder tokens, which computes in float32."""
    text = base.text
    exact = BaseModel.read(base.folder, "float32", text.clip_skip, text.max_token_chunks)
    encoders = tuple(
        replace(encoder, tokenizer=trained.tokenizer)
        for encoder, trained in zip(exact.text.encoders, text.encoders, strict=True)
    )
    exact = exact.with_text(replace(exact.text, encoders=encoders))
    return exact.with_lora(base.lora) if base.lora else exact


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference relative to the largest value: infinite for other shapes, NaN for NaN."""
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def written_params(export: Export) -> dict[str, dict[str, Any]]:
    """Returns component -> parameters, rounded as they were written; adapters of a LoRA stay beside their kernels."""
    model, base = WrittenModel(export), export.base
    whole = {
        component: {name: model.value(component, name).astype(np.float32) for name in base.module(component).shapes}
        for component in base.components
        if component != "vae"
    }
    embeddings = {
        component: {PLACEHOLDER_EMBEDDING: params[PLACEHOLDER_EMBEDDING]}
        for component, params in export.trained.items()
        if PLACEHOLDER_EMBEDDING in params
    }
    return join(whole, export.format.written_adapters(export), embeddings)


def own_step(exact: BaseModel, params: dict[str, Params], step: DenoisingStep) -> tuple[Array, Array]:
    """Returns jaxbooth's embeddings of a prompt's tokens (1, s, d) and its denoiser's output (1, h, w, c)."""
    time_ids = jnp.array([step.time_ids], jnp.float32)

    @jax.jit
    def run(params: dict[str, Params], latents: Array) -> tuple[TextEmbeddings, Array]:
        with full_precision():
            text = exact.text.encode(params, exact.text.tokenize([step.prompt]))
            model = exact.denoiser.bind(params[exact.denoiser_name])
            conditions = exact.denoiser_conditioning(text, time_ids)
            return text, model(latents, jnp.asarray(step.timesteps), *conditions)

    text, output = run(params, jnp.asarray(step.latents))
    tokens = None if text.lengths is None else int(text.lengths[0])
    return text.prompt_embeds[:, :tokens], output


def time_ids_of(exact: BaseModel, latents: np.ndarray) -> list[int]:
    """Returns SDXL's six numbers for a whole image: its size, no crop, its size."""
    height, width = (side * exact.vae_config.factor for side in latents.shape[1:3])
    return [height, width, 0, 0, height, width]


@contextmanager
def torch_pipeline(export: Export) -> Generator[Any]:
    """Opens an export in float32 on the CPU, as its users do; a LoRA and embeddings on top of the base model."""
    import torch

    end, last = export.base.text.eos_token_id_to_set, export.base.text_encoder_names[-1]
    with quiet(), TemporaryDirectory() as scratch:
        pipe = export.format.torch_pipeline(export, Path(scratch))
        pipe.to(torch.float32)  # before embeddings would be rounded to the files' dtype
        for format in formats_of(export):
            format.load_in_torch(pipe, export)
        if end is not None and not export.format.has_configuration:  # as the export's notes say
            getattr(pipe, last).text_model.eos_token_id = end
        yield pipe


@contextmanager
def quiet() -> Generator[None]:
    """Keeps both libraries' advice and bars out of the output, which is a verdict; errors still show."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
