"""An export, opened in PyTorch diffusers: does it compute what jaxbooth computes with what was trained?"""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.base.trainable import AnyArrays, add_trainable, load_lora_init, shard_params
from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.export.expected import expected_weights
from jaxbooth.export.export import PEFT_FILE, without_embeddings
from jaxbooth.params import Params, full_precision, join
from jaxbooth.weights.diffusers_read import index_file, open_tensors, weight_files
from jaxbooth.weights.diffusers_write import ExportDtype, ExportFormat, write_index
from jaxbooth.weights.embeddings import embedding_files, tensor_name
from jaxbooth.weights.ldm.read import PLAIN_PARTS
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.prepare import link_component

# Of the largest output. Both sides compute in float32 with the weights as they were written, so that what remains is
# the order of float32 sums: about 1e-6 for small models, 1e-5 for SDXL, where a wrong layer makes 1e-1.
TOLERANCE = 1e-3
LATENTS = 4  # side of the latents at the UNet's innermost level: a small picture exercises every weight


def check_torch(format: ExportFormat) -> None:
    """Refuses `--verify` where it cannot work.

    Raises:
        UserError: PyTorch, diffusers or (for a LoRA) peft is not installed.
    """
    needed = ("torch", "diffusers", *(["peft"] if format == "lora" else []))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(f"--verify needs {' and '.join(missing)}: pip install 'jaxbooth[torch]'.")


def compare_with_torch(
    config: Config,
    base: BaseModel,
    trained: dict[str, Params],
    mesh: Mesh,
    out: Path,
    format: ExportFormat,
    dtype: ExportDtype,
) -> str:
    """Encodes a prompt and denoises fixed latents once on both sides, in float32; says how far apart they are.

    Raises:
        UserError: see `check_torch`.
        RunFailure: diffusers does not open the export, or computes something else.
    """
    check_torch(format)
    plain = BaseModel.read(base.folder, "float32", config.text.clip_skip)
    exact = add_trainable(plain, config)
    height, width, channels = exact.latent_shape(*(LATENTS * exact.resolution_multiple,) * 2)
    latents = np.random.default_rng(0).normal(size=(1, height, width, channels)).astype(np.float32)
    timestep = len(exact.schedule.alphas_cumprod) // 2
    prompt = prompt_of(config)
    params = shard_params(written_params(config, exact, trained, out, format, dtype), mesh)
    own = [np.asarray(part) for part in own_step(exact, params, prompt, latents, timestep)]
    del params
    try:
        with torch_pipeline(exact, out, format) as pipe:
            theirs = torch_step(pipe, exact, prompt, latents, timestep)
    except Exception as error:  # whatever keeps it from working is the finding
        raise RunFailure(f"{out} does not work in PyTorch diffusers: {type(error).__name__}: {error}") from error
    text, step = (difference(found, expected) for found, expected in zip(theirs, own, strict=True))
    if not (text <= TOLERANCE and step <= TOLERANCE):
        raise RunFailure(
            f"{out}: PyTorch diffusers disagrees with what was trained: a prompt's features differ by {text:.0e} of "
            f"their scale, and a denoising step by {step:.0e} (at most {TOLERANCE:.0e} may be rounding)."
        )
    return f"PyTorch diffusers agrees: a denoising step differs by {step:.0e} of its scale, a prompt by {text:.0e}"


def prompt_of(config: Config) -> str:
    """Returns a prompt of the run with all its placeholder tokens."""
    prompt = config.subjects[0].instance_prompt
    return " ".join([prompt, *(word for word in config.text.placeholder_tokens if word not in prompt)])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference relative to the largest value: infinite for other shapes, NaN for NaN."""
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def written_params(
    config: Config, exact: BaseModel, trained: dict[str, Params], out: Path, format: ExportFormat, dtype: ExportDtype
) -> dict[str, dict[str, Any]]:
    """Returns component -> parameters, rounded as they were written; adapters of a LoRA stay beside their kernels."""
    weights = expected_weights(exact, trained, format, dtype)
    whole = {name: {own: part.read_back(key) for key, own in part.names.items()}
             for name, part in weights.items() if name != "vae"}  # fmt: skip
    words = {
        name: {PLACEHOLDER_EMBEDDING: params[PLACEHOLDER_EMBEDDING]}
        for name, params in trained.items()
        if PLACEHOLDER_EMBEDDING in params
    }
    if format != "lora":
        return join(whole, words)
    networks = {name: exact.module(name) for name in whole}
    lora = read_lora(out / PEFT_FILE, networks, exact.denoiser_config)
    adapters: dict[str, AnyArrays] = {name: {**without_embeddings(params)} for name, params in trained.items()}
    return join(whole, load_lora_init(adapters, lora, exact), words)


def own_step(
    exact: BaseModel, params: dict[str, Params], prompt: str, latents: np.ndarray, timestep: int
) -> tuple[Array, Array]:
    """Returns jaxbooth's features of a prompt (1, s, d) and its UNet's output (1, h, w, c)."""
    size = jnp.array([time_ids_of(exact, latents)], jnp.float32)

    @jax.jit
    def run(params: dict[str, Params], latents: Array) -> tuple[Array, Array]:
        with full_precision():
            text = exact.text.encode(params, exact.text.tokenize([prompt]))
            context, added = exact.denoiser_conditioning(text, size)
            model = exact.denoiser.bind(params[exact.denoiser_name])
            return text.prompt_embeds, model(latents, jnp.full(1, timestep), context, added)

    return run(params, jnp.asarray(latents))


def time_ids_of(exact: BaseModel, latents: np.ndarray) -> list[int]:
    """Returns SDXL's six numbers for a whole picture: its size, no crop, its size."""
    height, width = (side * exact.vae_config.factor for side in latents.shape[1:3])
    return [height, width, 0, 0, height, width]


def torch_step(
    pipe: Any, exact: BaseModel, prompt: str, latents: np.ndarray, timestep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same two as `own_step`, of a diffusers pipeline."""
    import torch

    for tower in filter(None, (getattr(pipe, name, None) for name in exact.text_encoder_names)):
        # diffusers 0.42's `clip_skip` asks for the inner module that transformers 5 took away.
        object.__setattr__(tower, "text_model", getattr(tower, "text_model", tower))
    with torch.no_grad():
        features, _, *pooled = pipe.encode_prompt(
            prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
            clip_skip=exact.text.clip_skip or None,
        )  # fmt: skip
        time_ids = torch.tensor([time_ids_of(exact, latents)], dtype=torch.float32)
        added = {"text_embeds": pooled[0], "time_ids": time_ids} if exact.text.conditioning.has_pooled else None
        noisy = torch.from_numpy(latents).permute(0, 3, 1, 2)
        output = pipe.unet(noisy, timestep, encoder_hidden_states=features, added_cond_kwargs=added).sample
    return features.numpy(), output.permute(0, 2, 3, 1).numpy()


@contextmanager
def torch_pipeline(exact: BaseModel, out: Path, format: ExportFormat) -> Generator[Any]:
    """Opens an export in float32 on the CPU, as its users do: a LoRA and embeddings on top of the base model."""
    import diffusers
    import torch

    with quiet(), TemporaryDirectory() as temporary:
        if format == "diffusers":
            pipe = diffusers.DiffusionPipeline.from_pretrained(out, local_files_only=True)
        elif format == "single-file":
            plain = base_folder(exact, Path(temporary), with_weights=False)
            file = out / f"{out.name}.safetensors"
            pipeline = getattr(diffusers, exact.family.pipeline)
            pipe = pipeline.from_single_file(str(file), config=str(plain), local_files_only=True)
        else:
            plain = base_folder(exact, Path(temporary))
            pipe = diffusers.DiffusionPipeline.from_pretrained(plain, local_files_only=True)
        pipe.to(torch.float32)  # before embeddings would be rounded to the files' dtype
        if format == "lora":
            pipe.load_lora_weights(out, weight_name=PEFT_FILE)
        load_embeddings(pipe, exact, out)
        if format != "diffusers" and exact.text.eos_token_id_to_set is not None:  # as the export's notes say
            getattr(pipe, exact.text_encoder_names[-1]).text_model.eos_token_id = exact.text.eos_token_id_to_set
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


def base_folder(exact: BaseModel, folder: Path, with_weights: bool = True) -> Path:
    """Fills `folder` with the base model as diffusers wants it: plain file names, and no part that is missing.

    Args:
        with_weights: link them too; without, diffusers cannot fill in what a single file lacks.
    """
    for name in PLAIN_PARTS:
        if (exact.folder / name).is_dir():
            (folder / name).symlink_to((exact.folder / name).absolute())
    for component in exact.components:
        source = exact.folder / component
        index = index_file(source)
        files = [*weight_files(source), *([index.name] if index else [])]
        link_component(source, files if with_weights else [], folder / component)
    write_index(exact.folder, folder)
    return folder


def load_embeddings(pipe: Any, exact: BaseModel, out: Path) -> None:
    """Adds the learned embeddings to a pipeline, for each of its text encoders."""
    import torch

    for token, file in embedding_files([token.text for token in exact.text.placeholder_tokens]).items():
        if len(exact.family.text_encoders) == 1:
            pipe.load_textual_inversion(out, weight_name=file, token=token)
            continue
        with open_tensors(out / file) as tensors:
            rows = [tensors.get_tensor(tensor_name(encoder, token)) for encoder in exact.family.text_encoders]
        for encoder, vectors in zip(exact.family.text_encoders, rows, strict=True):
            pipe.load_textual_inversion(
                torch.from_numpy(vectors),
                token=token,
                text_encoder=getattr(pipe, encoder.component),
                tokenizer=getattr(pipe, encoder.tokenizer),
            )
