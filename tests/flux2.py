"""Small random FLUX.2 transformers: diffusers' and ours with the same weights, and inputs."""

from typing import Any, NamedTuple

import diffusers
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import Flux2KleinPipeline

from jaxbooth.models.config import Flux2Config, read_config
from jaxbooth.models.flux2 import Flux2Transformer2DModel
from jaxbooth.models.layers import Layers
from jaxbooth.params import ModuleDef, Params, abstract_module
from tests.torch_parity import from_torch, params_from_torch, to_torch

SMALL: dict[str, Any] = {
    "in_channels": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "axes_dims_rope": [2, 4, 6, 4],
    "timestep_guidance_channels": 32,
    "guidance_embeds": False,
}


class Inputs(NamedTuple):
    """What the network takes; timesteps are the scheduler's, 0 to 1000."""

    sample: np.ndarray
    timesteps: np.ndarray
    prompt_embeds: np.ndarray


def reference(**changes: Any) -> diffusers.Flux2Transformer2DModel:
    """Diffusers' module, with norms of queries and keys that are not 1."""
    torch.manual_seed(0)
    module = diffusers.Flux2Transformer2DModel(**SMALL | changes).eval()
    for name, parameter in module.named_parameters():
        if ".norm_" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def definition(module: torch.nn.Module, dtype: Any = jnp.float32) -> ModuleDef:
    """Ours, by the configuration of diffusers' module."""
    config = read_config(Flux2Config, dict(module.config), "transformer/config.json")
    return abstract_module(lambda rngs: Flux2Transformer2DModel(config, Layers(rngs, dtype)))


def pair(**changes: Any) -> tuple[torch.nn.Module, ModuleDef, Params]:
    """Returns diffusers' module, ours, and the parameters."""
    module = reference(**changes)
    network = definition(module)
    return module, network, params_from_torch(module, network)


def inputs(rng: np.random.Generator, height: int, width: int, length: int, batch: int = 2, **changes: Any) -> Inputs:
    """Random latents, timesteps and text."""
    config = SMALL | changes
    return Inputs(
        rng.normal(size=(batch, height, width, config["in_channels"])).astype(np.float32),
        np.array([871.25, 3.5, 500.0, 1000.0][:batch], np.float32),
        rng.normal(size=(batch, length, config["joint_attention_dim"])).astype(np.float32),
    )


def in_torch(module: torch.nn.Module, given: Inputs) -> torch.Tensor:
    """Calls diffusers' module as its pipeline does; NCHW."""
    sample, embeds = to_torch(given.sample), torch.tensor(given.prompt_embeds)
    height, width = sample.shape[2:]
    out = module(
        hidden_states=Flux2KleinPipeline._pack_latents(sample),
        encoder_hidden_states=embeds,
        timestep=torch.tensor(given.timesteps) / 1000,
        img_ids=Flux2KleinPipeline._prepare_latent_ids(sample),
        txt_ids=Flux2KleinPipeline._prepare_text_ids(embeds),
        guidance=None,
    ).sample
    return out.permute(0, 2, 1).reshape(len(out), -1, height, width)


def expected_output(module: torch.nn.Module, given: Inputs) -> np.ndarray:
    """Diffusers' output, NHWC."""
    with torch.no_grad():
        return from_torch(in_torch(module, given))
