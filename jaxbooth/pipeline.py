"""A model or a run with its weights on the devices, ready to generate images: `Pipeline.load(path).sample(prompt)`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.assets import EMBEDDED_MODELS
from jaxbooth.base.encoded_prompts import EncodedPrompts, encode_ahead
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.sampling import BATCH_SIZE, ImageSampler, SamplingConfig, configured_sampling
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.base.trainable import fully_trained, trained_shapes
from jaxbooth.config.limits import (
    ChunkCount,
    ClipSkip,
    GuidanceScale,
    ImageCount,
    Pixels,
    Prompt,
    SamplerSteps,
    Seed,
    Step,
    check_arguments,
)
from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config, fill_defaults
from jaxbooth.config.section import flag
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.errors import UserError
from jaxbooth.models.lora import merge_on_devices
from jaxbooth.models.quantization import Quantization
from jaxbooth.params import Params, join
from jaxbooth.runs.folder import RunFolder, open_run, refuse_missing
from jaxbooth.runs.restore import confirm_base, read_base, restore_result, run_mesh
from jaxbooth.sharding import make_mesh
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.remote import as_path
from jaxbooth.weights.embeddings import read_embeddings
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source


class SamplingDefaults(NamedTuple):
    """How a model is sampled unless something else is asked for; a guidance scale of 1 means no guidance."""

    sampler: SamplerName = "dpmpp_2m"
    steps: int = 25
    guidance_scale: float = 7.5

    def override(
        self, sampler: SamplerName | None, steps: int | None, guidance_scale: float | None
    ) -> "SamplingDefaults":
        """Returns the defaults with every argument that is not None in their place."""
        return SamplingDefaults(
            self.sampler if sampler is None else sampler,
            self.steps if steps is None else steps,
            self.guidance_scale if guidance_scale is None else guidance_scale,
        )


DEFAULT_SAMPLING = SamplingDefaults()


@dataclass(frozen=True)
class Pipeline:
    """A model with its weights on the devices of a mesh.

    Attributes:
        params: component -> parameters, of all that stay loaded; see `BaseModel.resident_components`.
        resolution: side in pixels that it was trained at.
        step: how many steps it was trained for; 0 for a base model.
        defaults: how it is sampled; for a run, as in its sample grids.
    """

    base: BaseModel
    params: dict[str, Params]
    mesh: Mesh
    resolution: int
    step: int = 0
    defaults: SamplingDefaults = DEFAULT_SAMPLING

    @classmethod
    @check_arguments
    def load(
        cls,
        path: str | Path | Source,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        clip_skip: ClipSkip = 0,
        max_token_chunks: ChunkCount = 1,
        step: Step | None = None,
        quantization: Quantization = "none",
    ) -> "Pipeline":
        """Loads a run folder, a model folder, a single file or a Hub id.

        Args:
            dtype: compute dtype; default: the run's, and "auto" for a plain model.
            mesh: default: the run's, or one of all devices.
            clip_skip, max_token_chunks: of a plain model; see `BaseModel.read`.
            step: of a run's checkpoint; default: its newest.
            quantization: of a plain model; see `--model-quantization`.

        Raises:
            UserError: nothing usable is there, or an argument does not apply to what is there.
        """
        source = path if isinstance(path, Source) else Source(str(path))
        refuse_missing(source.name)
        if RunFolder(as_path(source.name)).config.exists():
            refuse_model_arguments(source, clip_skip, max_token_chunks, quantization)
            run, config = open_run(source.name)
            return load_run(run, config, read_base(config, dtype), mesh or run_mesh(config), step)
        if step is not None:
            raise UserError(f"--step {step} is about the checkpoints of a run, and {source.name} is not a run folder.")
        base = BaseModel.read(resolve_model(source), dtype or "auto", clip_skip, max_token_chunks)
        return load_model(source.name, base.with_quantization(quantization), mesh or make_mesh())

    @check_arguments
    def sample(
        self,
        prompt: Prompt,
        num: ImageCount = 1,
        seed: Seed = 0,
        negative_prompt: Prompt = "",
        sampler: SamplerName | None = None,
        steps: SamplerSteps | None = None,
        guidance_scale: GuidanceScale | None = None,
        resolution: Pixels | None = None,
        height: Pixels | None = None,
        width: Pixels | None = None,
    ) -> list[Any]:
        """Generates `num` images of a prompt and returns them as PIL images; image i depends on (seed, i) alone.

        Args:
            sampler, steps, guidance_scale: default: the pipeline's `defaults`.
            resolution: side in pixels; default: what the model was trained at.
            height, width: default: the resolution.

        Raises:
            UserError: an argument is out of its range, or the model's downsampling does not divide a side.
        """
        if not prompt.strip():
            raise UserError("Pipeline.sample: the prompt is empty; say what the images should show.")
        defaults = self.defaults.override(sampler, steps, guidance_scale)
        config = SamplingConfig(*defaults, resolution or self.resolution, negative_prompt, height, width)
        return list(self.generate(config, prompt, range(num), seed))

    def encode_ahead(self, prompts: Sequence[str]) -> EncodedPrompts | None:
        """Encodes prompts and drops the text encoder again, where it is a large one that is not in `params`."""
        if not self.base.text.runs_once:
            return None
        return encode_ahead(self.base, self.mesh, list(dict.fromkeys(prompts)))[0]

    def generate(self, config: SamplingConfig, prompt: str, indices: Sequence[int], seed: int) -> Iterator[Image.Image]:
        """Yields the images of a prompt that have these indices, a batch at a time, under a progress bar."""
        encoded = self.encode_ahead([config.negative_prompt, prompt])
        image_sampler = ImageSampler(self.base, self.mesh, config, min(len(indices), BATCH_SIZE), encoded=encoded)
        with progress("sample", len(indices), transient=True) as bar:
            for batch in image_sampler.batches(self.params, [prompt] * len(indices), seed, indices):
                yield from map(Image.fromarray, batch)
                bar.advance(len(batch))


def load_run(run: RunFolder, config: Config, base: BaseModel, mesh: Mesh, step: int | None = None) -> Pipeline:
    """Loads a run at a step (default: its newest): adapters merged in float32, learned embeddings beside the table."""
    confirm_base(run, base)
    trained, step = restore_result(run, config, base, mesh, step)
    replaced = fully_trained(base, trained_shapes(base, config))
    frozen = load_params(base, mesh, components=tuple(set(base.resident_components) - set(replaced)))
    params = join(frozen, trained)
    # Rounded to bfloat16 or fewer bits, a kernel would swallow most of a small change; there adapters stay beside it.
    if base.dtype == jnp.float32 and base.quantization == "none":
        params = merge_on_devices(params, base.lora)
    return Pipeline(base, params, mesh, config.resolution, step, validation_sampling(config, base))


def load_model(name: str, base: BaseModel, mesh: Mesh) -> Pipeline:
    """Loads a plain model with the learned embeddings that lie in its folder.

    Args:
        name: as the user gave it.
    """
    base, embeddings = load_embeddings(base)
    params = join(load_params(base, mesh, components=base.resident_components), embeddings)
    return Pipeline(base, params, mesh, base.native_resolution, 0, default_sampling(name, base))


def refuse_model_arguments(source: Source, clip_skip: int, max_token_chunks: int, quantization: Quantization) -> None:
    """Raises UserError for arguments that say how to read a plain model, because a run's own settings decide that."""
    arguments = {field.name: getattr(source, field.name) for field in fields(source)[1:]}
    arguments |= {"clip_skip": clip_skip, "max_token_chunks": max_token_chunks > 1}
    arguments |= {"model_quantization": quantization != "none"}
    given = [name for name, value in arguments.items() if value]
    if given:
        raise UserError(f"{flag(given[0])} is about a plain model; {source.name} is a run, which has its own.")


def validation_sampling(config: Config, base: BaseModel) -> SamplingDefaults:
    """Returns how a run's sample grids are made."""
    filled = fill_defaults(config, base.native_resolution, base.sampling)
    sampling = configured_sampling(filled.validation, filled.resolution)
    return SamplingDefaults(sampling.sampler, sampling.steps, sampling.guidance_scale)


def default_sampling(name: str, base: BaseModel) -> SamplingDefaults:
    """Returns how a plain model is sampled: embedded ones as their runs are, others as suits their family."""
    if name in EMBEDDED_MODELS:
        return validation_sampling(load_config(name), base)
    defaults = SamplingDefaults(base.sampling.sampler, guidance_scale=base.sampling.guidance_scale)
    return defaults._replace(steps=base.distillation.steps) if base.distillation else defaults


def load_embeddings(base: BaseModel) -> tuple[BaseModel, dict[str, Params]]:
    """Adds the placeholder tokens whose embeddings lie in a model folder, where an export put them.

    Returns:
        The model that knows the tokens, and text encoder -> their embeddings as parameters.

    Raises:
        UserError: a file is damaged, or its embeddings are not as wide as the text encoders are.
    """
    embeddings: dict[str, list[np.ndarray]] = {}
    for token, tables in read_embeddings(base.folder).items():
        vectors = len(next(iter(tables.values())))
        expected = {encoder.name: (vectors, encoder.config.hidden_size) for encoder in base.text.encoders}
        if {name: table.shape for name, table in tables.items()} != expected:
            raise UserError(
                f"{base.folder}: the learned embeddings of {ascii_repr(token)} do not fit the text encoders; "
                "they must be of this model."
            )
        base = base.with_text(base.text.add_placeholder_tokens((token,), vectors))
        for name, table in tables.items():
            embeddings.setdefault(name, []).append(table)
    params = {name: {PLACEHOLDER_EMBEDDING: jnp.asarray(np.concatenate(tables))} for name, tables in embeddings.items()}
    return base, params
