"""A base model: text encoders, denoiser, VAE and noise schedule, read from a diffusers folder, and their weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.components import (
    check_components,
    read_component_config,
    read_family,
    read_model_index,
    read_text_encoder,
)
from jaxbooth.base.text_encoder import TextEmbeddings, TextEncoders, TokenIds
from jaxbooth.config.limits import MAX_ENLARGEMENT
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.schedule import NoiseSchedule, read_schedule
from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig, VAEConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.lora import LoraSpec, with_adapters
from jaxbooth.models.unet import AddedConditions, UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.params import ModuleDef, Params, abstract_module, precision_of
from jaxbooth.sharding import mesh_context, param_shardings
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import Family
from jaxbooth.weights.diffusers_read import load_component


def compute_dtype(choice: str) -> Any:
    """Resolves `auto` to bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is emulated."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)


@dataclass(frozen=True)
class BaseModel:
    """A base model without its weights."""

    folder: Path
    family: Family
    schedule: NoiseSchedule
    unet_config: UNetConfig
    vae_config: VAEConfig
    unet: ModuleDef
    vae: ModuleDef
    text: TextEncoders
    dtype: Any
    lora: LoraSpec | None = None

    @classmethod
    def read(cls, folder: Path, dtype: str = "auto", clip_skip: int = 0, max_token_chunks: int = 1) -> "BaseModel":
        """Reads the configurations of a diffusers folder.

        Args:
            dtype: compute dtype of UNet and text encoders; the VAE always computes in float32.
            clip_skip: layers that the text encoders leave out.
            max_token_chunks: parts of 75 tokens in a prompt.

        Raises:
            UserError: the folder is not a Stable Diffusion text-to-image model that jaxbooth supports.
        """
        index = read_model_index(folder)
        unet_config = read_component_config(UNetConfig, folder / "unet")
        family = read_family(index, unet_config, folder)
        vae_config = read_component_config(VAEConfig, folder / "vae")
        compute = compute_dtype(dtype)
        towers = tuple(read_text_encoder(folder, spec, compute) for spec in family.text_encoders)
        force_zeros_for_empty_prompt = family.conditioning.zeros_for_empty_prompt and bool(
            index.get("force_zeros_for_empty_prompt", True)
        )  # diffusers' own default
        text = TextEncoders(towers, family.conditioning, clip_skip, max_token_chunks, force_zeros_for_empty_prompt)
        scheduler = folder / "scheduler" / "scheduler_config.json"
        check_components(folder, family, unet_config, vae_config, text)
        return cls(
            folder=folder,
            family=family,
            schedule=read_schedule(read_json(scheduler), str(scheduler)),
            unet_config=unet_config,
            vae_config=vae_config,
            unet=abstract_module(lambda rngs: UNet2DConditionModel(unet_config, Layers(rngs, compute))),
            vae=abstract_module(lambda rngs: AutoencoderKL(vae_config, Layers(rngs))),
            text=text,
            dtype=compute,
        )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the folders that hold weights."""
        return ("unet", "vae", *(tower.name for tower in self.text.encoders))

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """Names of the text encoders."""
        return tuple(tower.name for tower in self.text.encoders)

    def module(self, component: str) -> ModuleDef:
        """Returns the structure of one of `components`."""
        networks = {"unet": self.unet, "vae": self.vae} | {tower.name: tower.module for tower in self.text.encoders}
        return networks[component]

    def with_text(self, text: TextEncoders) -> "BaseModel":
        """Returns the base with another text side."""
        return replace(self, text=text)

    def with_lora(self, lora: LoraSpec) -> "BaseModel":
        """Returns the base whose UNet and text encoders also take adapters."""
        towers = tuple(replace(tower, module=with_adapters(tower.module, lora)) for tower in self.text.encoders)
        text = replace(self.text, encoders=towers)
        return replace(self, unet=with_adapters(self.unet, lora), text=text, lora=lora)

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur in the UNet and the text encoders."""
        return self.unet_config.attention_heads | {tower.config.num_attention_heads for tower in self.text.encoders}

    @property
    def resolution_multiple(self) -> int:
        """Pixels that a picture's side must be a multiple of: VAE factor x UNet downsampling."""
        return self.vae_config.factor * 2 ** (len(self.unet_config.block_out_channels) - 1)

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the model was trained at."""
        return (self.unet_config.sample_size or 64) * self.vae_config.factor

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of pictures of a size in pixels."""
        factor = self.vae_config.factor
        return height // factor, width // factor, self.vae_config.latent_channels

    def denoiser_conditioning(self, text: TextEmbeddings, time_ids: Array) -> tuple[Array, AddedConditions | None]:
        """Returns what the UNet takes besides latents and timesteps.

        Args:
            time_ids: (b, 6) original height and width, crop top and left, target height and width, in pixels; only SDXL
                looks at them.
        """
        return text.prompt_embeds, None if text.pooled_prompt_embeds is None else AddedConditions(
            text.pooled_prompt_embeds, time_ids
        )


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


def encode_prompts(base: BaseModel, mesh: Mesh, params: Mapping[str, Params], ids: TokenIds) -> TextEmbeddings:
    """Runs the text encoders once, ahead of everything that uses the embeddings; float32. Pure."""
    with precision_of(base.dtype), mesh_context(mesh):
        return base.text.encode(params, ids)


def load_params(
    base: BaseModel, mesh: Mesh, trained: tuple[str, ...] = (), components: tuple[str, ...] | None = None
) -> dict[str, Params]:
    """Loads the weights of components under a progress bar.

    Args:
        trained: components to hold in float32; the others take the compute dtype (the VAE float32).
        components: default: all.

    Raises:
        UserError: weights are missing, damaged or of another shape.
    """
    params, components = {}, base.components if components is None else components
    with progress("load", sum(len(base.module(name).shapes) for name in components)) as bar:
        for name in components:
            bar.set_postfix(name)
            dtype = jnp.float32 if name in trained or name == "vae" else base.dtype
            params[name] = load_component(
                base.folder / name, base.module(name), param_shardings(mesh), dtype, bar.advance
            )
    return params
