"""A base model: text encoders, denoiser, VAE and noise schedule, read from a diffusers folder, and their weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.chat_text import read_chat_text_encoder
from jaxbooth.base.components import (
    check_components,
    find_distillation,
    native_resolution,
    read_component_config,
    read_denoiser_config,
    read_model_index,
    read_text_encoders,
    refuse_clip_options,
    resolution_multiple,
)
from jaxbooth.base.text_encoder import PromptEncoder, TextEmbeddings, TokenIds
from jaxbooth.config.limits import MAX_ENLARGEMENT
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.schedule import NoiseSchedule, read_schedule
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import LoraSpec
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.lora import with_adapters
from jaxbooth.models.quantization import Quantization
from jaxbooth.models.unet import AddedConditions
from jaxbooth.models.vae import AnyVAEConfig
from jaxbooth.params import ModuleDef, Params, abstract_module, precision_of
from jaxbooth.sharding import AnyMesh, mesh_context, param_shardings
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.family import Distillation, Family, FamilySampling


def compute_dtype(choice: str) -> Any:
    """Resolves `auto` to bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is emulated."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)


@dataclass(frozen=True)
class BaseModel:
    """A base model without its weights.

    Attributes:
        folder: of the diffusers layout.
        dtype: that the denoiser and the text encoders compute in; the VAE always computes in float32.
        distillation: how it is sampled in few steps, if it was distilled for that.
        lora: what the adapters share, where it has any.
        quantization: of the denoiser's and the text encoders' kernels, wherever they are frozen.
    """

    folder: Path
    family: Family
    schedule: NoiseSchedule
    denoiser_config: DenoiserConfig
    vae_config: AnyVAEConfig
    denoiser: ModuleDef
    vae: ModuleDef
    text: PromptEncoder
    dtype: Any
    distillation: Distillation | None = None
    lora: LoraSpec | None = None
    quantization: Quantization = "none"

    @classmethod
    def read(
        cls,
        folder: Path,
        dtype: str = "auto",
        clip_skip: int = 0,
        max_token_chunks: int = 1,
        has_tokenizer: bool = True,
    ) -> "BaseModel":
        """Reads the configurations of a diffusers folder.

        Args:
            dtype: compute dtype, or "auto"; see `compute_dtype`.
            clip_skip: layers that the text encoders leave out.
            max_token_chunks: how many times 75 tokens of a prompt are read.
            has_tokenizer: whether a language model's tokenizer is in the folder; without it, nothing can be encoded.

        Raises:
            UserError: the folder is not a text-to-image model that jaxbooth supports.
        """
        model_index = read_model_index(folder)
        family, denoiser_config = read_denoiser_config(folder, model_index)
        vae_config = read_component_config(family.vae.config, folder / "vae")
        compute = compute_dtype(dtype)
        if family.chat_encoder:
            refuse_clip_options(family, clip_skip, max_token_chunks)
            text = read_chat_text_encoder(folder, family.chat_encoder, compute, has_tokenizer)
        else:
            text = read_text_encoders(folder, family, model_index, compute, clip_skip, max_token_chunks)
        check_components(folder, family, denoiser_config, vae_config, text)
        scheduler_file = folder / "scheduler" / "scheduler_config.json"
        scheduler = read_json(scheduler_file)
        return cls(
            folder=folder,
            family=family,
            schedule=read_schedule(scheduler, str(scheduler_file)),
            denoiser_config=denoiser_config,
            vae_config=vae_config,
            denoiser=abstract_module(lambda rngs: family.denoiser.module(denoiser_config, Layers(rngs, compute))),
            vae=abstract_module(lambda rngs: family.vae.module(vae_config, Layers(rngs))),
            text=text,
            dtype=compute,
            distillation=find_distillation(family, model_index, scheduler),
        )

    @property
    def sampling(self) -> FamilySampling:
        """How images are sampled unless something else is asked for; of a distilled model, without guidance."""
        sampling = self.family.sampling
        if self.distillation is None:
            return sampling
        sampler = self.distillation.sampler
        return sampling._replace(guidance_scale=1.0, sampler=sampler, prior_sampler=sampler)

    @property
    def denoiser_name(self) -> str:
        """The denoiser's component: its folder, and its key among the parameters."""
        return self.family.denoiser.component

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """The text encoders' components."""
        return tuple(encoder.name for encoder in self.text.encoders)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the folders that hold weights."""
        return (self.denoiser_name, "vae", *self.text_encoder_names)

    @property
    def resident_components(self) -> tuple[str, ...]:
        """Names of the components that stay loaded: all but a text encoder that runs once, ahead."""
        return (self.denoiser_name, "vae") if self.text.runs_once else self.components

    def trainable_components(self, with_text_encoders: bool = True) -> tuple[str, ...]:
        """Returns the components that training can change: the denoiser, and text encoders if asked for."""
        can_train_text = with_text_encoders and not self.text.runs_once
        return (self.denoiser_name, *(self.text_encoder_names if can_train_text else ()))

    def module(self, component: str) -> ModuleDef:
        """Returns the structure of one of `components`."""
        modules = {encoder.name: encoder.module for encoder in self.text.encoders}
        modules |= {self.denoiser_name: self.denoiser, "vae": self.vae}
        return modules[component]

    def with_text(self, text: PromptEncoder) -> "BaseModel":
        """Returns the model with other text encoders."""
        return replace(self, text=text)

    def with_lora(self, lora: LoraSpec) -> "BaseModel":
        """Returns the model whose denoiser, and text encoders where they can be trained, also take adapters."""
        return replace(self, denoiser=with_adapters(self.denoiser, lora), text=self.text.with_lora(lora), lora=lora)

    def with_quantization(self, quantization: Quantization) -> "BaseModel":
        """Returns the model whose frozen kernels are quantized when they are loaded."""
        return replace(self, quantization=quantization)

    def quantization_of(self, component: str) -> Quantization:
        """Returns how a component's kernels are quantized while it is frozen; the VAE's never are."""
        return "none" if component == "vae" else self.quantization

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur in the denoiser and the text encoders."""
        return self.denoiser_config.attention_heads | self.text.attention_heads

    @property
    def resolution_multiple(self) -> int:
        """Pixels that an image's side must be a multiple of: VAE factor x the denoiser's downsampling."""
        return resolution_multiple(self.denoiser_config, self.vae_config)

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the model was trained at."""
        return native_resolution(self.denoiser_config, self.vae_config, self.schedule.is_flow)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of images of a size in pixels."""
        factor = self.vae_config.factor
        return height // factor, width // factor, self.vae_config.latent_channels

    def image_tokens(self, height: int, width: int) -> int:
        """Returns how many tokens the denoiser makes of an image of a size in pixels, if it is a transformer."""
        return (height // self.resolution_multiple) * (width // self.resolution_multiple)

    def with_schedule(self, schedule: NoiseSchedule) -> "BaseModel":
        """Returns the model with another noise schedule."""
        return replace(self, schedule=schedule)

    def denoiser_conditioning(self, text: TextEmbeddings, time_ids: Array) -> tuple[Any, ...]:
        """Returns the arguments that the denoiser takes after latents and timesteps.

        They are the prompt embeddings, and with them what the text encoder gave besides: how many of them are no
        padding, or CLIP's pooled embeddings, which go with sizes and crops.

        Args:
            time_ids: (b, 6) original height and width, crop top and left, target height and width, in pixels.
        """
        conditions: list[Any] = [text.prompt_embeds]
        if text.lengths is not None:
            conditions.append(text.lengths)
        if text.pooled_prompt_embeds is not None:
            conditions.append(AddedConditions(text.pooled_prompt_embeds, time_ids))
        return tuple(conditions)


def check_resolution(base: BaseModel, resolution: int, flag: str) -> None:
    """Refuses a side that the model's downsampling does not divide, or that is far beyond what it was trained at.

    Raises:
        UserError: the message names a side that would do.
    """
    multiple = base.resolution_multiple
    largest = MAX_ENLARGEMENT * base.native_resolution
    if resolution > largest:
        raise UserError(
            f"{flag} {resolution} is far beyond this model's {base.native_resolution} px; {largest} is the most."
        )
    if resolution % multiple:
        nearest = max(multiple, round(resolution / multiple) * multiple)
        raise UserError(f"{flag} {resolution} is not a multiple of {multiple}, which this model needs; try {nearest}.")


def encode_prompts(base: BaseModel, mesh: AnyMesh, params: Mapping[str, Params], ids: TokenIds) -> TextEmbeddings:
    """Runs the text encoders once, ahead of everything that uses the embeddings. Pure."""
    with precision_of(base.dtype), mesh_context(mesh):
        return base.text.encode(params, ids)


def load_params(
    base: BaseModel, mesh: Mesh, trained: tuple[str, ...] = (), components: tuple[str, ...] | None = None
) -> dict[str, Params]:
    """Loads the weights of components under a progress bar.

    Args:
        trained: components to hold in float32; the others take the compute dtype (the VAE float32), and their kernels
            are quantized if the model's are.
        components: default: all.

    Raises:
        UserError: weights are missing, damaged or of another shape.
    """
    components = base.components if components is None else components
    params = {}
    with progress("load", sum(len(base.module(name).shapes) for name in components)) as bar:
        for name in components:
            bar.set_postfix(name)
            dtype = jnp.float32 if name in trained or name == "vae" else base.dtype
            folder = base.folder / name
            quantization = "none" if name in trained else base.quantization_of(name)
            params[name] = load_component(
                folder, base.module(name), param_shardings(mesh), dtype, bar.advance, quantization=quantization
            )
    return params
