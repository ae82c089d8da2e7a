"""What belongs together: tokenizer, text encoder, UNet, VAE and schedule of one base model.

`Base` is the structure, cheap to read; `Pipeline` adds the parameters and draws pictures.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.console import progress, warn
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.diffusion.schedule import Schedule, read_schedule
from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, read_config
from jaxbooth.models.layers import Make
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.params import Network, Params, describe
from jaxbooth.sharding import placement
from jaxbooth.weights.diffusers_dir import COMPONENTS, load_component, read_json

PIPELINE_CLASS = "StableDiffusionPipeline"


def compute_dtype(choice: str) -> Any:
    """Resolves `auto` to bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is emulated."""
    if choice == "auto":
        choice = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(choice)


@dataclass(frozen=True)
class Base:
    """A base model without its weights."""

    folder: Path
    tokenizer: Any
    schedule: Schedule
    unet_config: UNetConfig
    vae_config: VAEConfig
    unet: Network
    vae: Network
    text_encoder: Network
    dtype: Any

    @classmethod
    def read(cls, folder: Path, dtype: str = "auto") -> "Base":
        """Reads the configurations of a diffusers folder.

        Args:
            dtype: compute dtype of UNet and text encoder; the VAE always computes in float32.

        Raises:
            UserError: the folder is not a Stable Diffusion text-to-image model that jaxbooth supports.
        """
        kind = read_json(folder / "model_index.json").get("_class_name")
        if kind != PIPELINE_CLASS:
            raise UserError(f"{folder / 'model_index.json'}: {kind} is not supported; expected a {PIPELINE_CLASS}.")
        unet_config = read_component_config(UNetConfig, folder / "unet")
        vae_config = read_component_config(VAEConfig, folder / "vae")
        text_config = read_component_config(CLIPTextConfig, folder / "text_encoder")
        if unet_config.in_channels != vae_config.latent_channels:
            raise UserError(
                f"{folder / 'unet' / 'config.json'}: in_channels {unet_config.in_channels} is not the VAE's "
                f"{vae_config.latent_channels}; inpainting and depth models cannot be trained."
            )
        compute = compute_dtype(dtype)
        return cls(
            folder=folder,
            tokenizer=read_tokenizer(folder / "tokenizer", text_config.max_position_embeddings),
            schedule=read_schedule(read_json(folder / "scheduler" / "scheduler_config.json")),
            unet_config=unet_config,
            vae_config=vae_config,
            unet=describe(lambda rngs: UNet2DConditionModel(unet_config, Make(rngs, compute))),
            vae=describe(lambda rngs: AutoencoderKL(vae_config, Make(rngs))),
            text_encoder=describe(lambda rngs: CLIPTextModel(text_config, Make(rngs, compute))),
            dtype=compute,
        )

    def network(self, component: str) -> Network:
        """Returns the structure of one of COMPONENTS."""
        return getattr(self, component)

    @property
    def resolution_multiple(self) -> int:
        """Pixels that a picture's side must be a multiple of: VAE factor x UNet downsampling."""
        return self.vae_config.factor * 2 ** (len(self.unet_config.block_out_channels) - 1)

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the model was trained at."""
        return (self.unet_config.sample_size or 64) * self.vae_config.factor

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of square pictures."""
        side = resolution // self.vae_config.factor
        return side, side, self.vae_config.latent_channels

    def tokenize(self, prompts: list[str]) -> np.ndarray:
        """Returns (len(prompts), max_length) int32 token ids, padded and truncated."""
        encoded = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.max_length)
        return np.asarray(encoded["input_ids"], np.int32)

    @property
    def max_length(self) -> int:
        """Tokens that the text encoder takes, the two special ones included."""
        return self.tokenizer.model_max_length

    def lost_text(self, prompt: str) -> str:
        """Returns the end of a prompt that does not fit, or an empty string."""
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return self.tokenizer.decode(ids[self.max_length - 2 :]).strip()


def warn_about_lost_text(base: Base, captions: Iterable[str]) -> None:
    """Warns once about all captions that are too long, and shows what of the first one is lost."""
    distinct = list(dict.fromkeys(captions))
    lost = [text for caption in distinct if (text := base.lost_text(caption))]
    if lost:
        warn(f"{len(lost)} of {len(distinct)} prompt(s) exceed {base.max_length} tokens; lost text: '{lost[0]}'")


def read_component_config(kind: type, folder: Path) -> Any:
    """Reads a component's `config.json` into its typed view."""
    return read_config(kind, read_json(folder / "config.json"), str(folder / "config.json"))


def read_tokenizer(folder: Path, max_length: int) -> Any:
    """Opens a CLIP tokenizer from its files alone.

    Raises:
        UserError: the folder holds no CLIP tokenizer.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would miss PyTorch, which is not needed
    from transformers import CLIPTokenizer  # a second that `jaxbooth --help` should not cost

    if not (folder / "vocab.json").exists() and not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} holds no tokenizer (vocab.json and merges.txt); fetch the model again.")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be read ({error}); fetch the model again.") from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    return tokenizer


def load_params(
    base: Base, mesh: Mesh, trained: tuple[str, ...] = (), components: tuple[str, ...] = COMPONENTS
) -> dict[str, Params]:
    """Loads the weights of components under a progress bar.

    Args:
        trained: components to hold in float32; the others take the compute dtype (the VAE float32).

    Raises:
        UserError: weights are missing, damaged or of another shape.
    """
    params = {}
    with progress("load", sum(len(base.network(name).shapes) for name in components)) as bar:
        for name in components:
            bar.note(name)
            dtype = jnp.float32 if name in trained or name == "vae" else base.dtype
            params[name] = load_component(base.folder / name, base.network(name), placement(mesh), dtype, bar.advance)
    return params


def encode_text(base: Base, params: Params, token_ids: Array) -> Array:
    """Maps (b, s) token ids to (b, s, d) text features."""
    return base.text_encoder.bind(params)(token_ids)


@dataclass(frozen=True)
class Pipeline:
    """A model with its weights on the devices of a mesh.

    Attributes:
        params: component -> parameters.
        resolution: side in pixels that it was trained at.
        step: of its training; 0 is a base model.
    """

    base: Base
    params: dict[str, Params]
    mesh: Mesh
    resolution: int
    step: int = 0

    @classmethod
    def load(cls, path: str | Path, dtype: str = "auto", mesh: Mesh | None = None) -> "Pipeline":
        """Loads a model folder, a Hub id, or a run folder (with its newest checkpoint).

        Raises:
            UserError: nothing usable is there.
        """
        from jaxbooth.run_folder import load_pipeline  # a run folder is more than a pipeline, and builds on it

        return load_pipeline(path, dtype, mesh)

    def sample(
        self,
        prompt: str,
        num: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        sampler: SamplerName = "dpmpp_2m",
        steps: int = 25,
        guidance_scale: float = 7.5,
        resolution: int | None = None,
    ) -> list[Any]:
        """Draws `num` pictures of a prompt and returns them as PIL images; picture i depends on (seed, i) alone."""
        from jaxbooth.sampling import Settings, draw  # sampling builds on Base

        settings = Settings(sampler, steps, guidance_scale, resolution or self.resolution, negative_prompt)
        return draw(self, settings, prompt, num, seed)
