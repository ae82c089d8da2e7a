"""Small random Z-Image transformers, in diffusers and here."""

from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from jaxbooth.models.config import read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.zimage import ZImageTransformer2DModel
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.params import ModuleDef, abstract_module

TINY = {
    "in_channels": 3, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": 20, "axes_dims": [8, 4, 4], "axes_lens": [128, 16, 16],
}  # fmt: skip
ODD = TINY | {"dim": 43, "n_heads": 3, "axes_dims": [6, 4, 4], "in_channels": 5, "cap_feat_dim": 19}  # 42 in heads
WIDE = TINY | {"dim": 320, "n_heads": 4, "axes_dims": [32, 24, 24], "n_layers": 1}  # modulated by 256 channels


def in_diffusers(raw: dict[str, Any]) -> diffusers.ZImageTransformer2DModel:
    """A module all of whose parameters differ from those that training begins with."""
    torch.manual_seed(0)
    module = diffusers.ZImageTransformer2DModel(**raw).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def network(raw: dict[str, Any], dtype: Any = jnp.float32) -> ModuleDef:
    """The same module's description."""
    config = read_config(ZImageConfig, raw, "transformer/config.json")
    return abstract_module(lambda rngs: ZImageTransformer2DModel(config, Layers(rngs, dtype)))


def inputs(
    rng: np.random.Generator, raw: dict[str, Any], height: int, width: int, lengths: tuple[int, ...], longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sample, timesteps, prompt embeddings of `longest` tokens and the lengths that are real."""
    batch = len(lengths)
    sample = rng.normal(size=(batch, height, width, raw["in_channels"])).astype(np.float32)
    timesteps = rng.uniform(0, 1000, batch).astype(np.float32)
    prompts = rng.normal(size=(batch, longest, raw["cap_feat_dim"])).astype(np.float32)
    return sample, timesteps, prompts, np.asarray(lengths, np.int32)


def velocity(
    module: diffusers.ZImageTransformer2DModel, sample: Any, timesteps: Any, prompts: Any, lengths: Any
) -> torch.Tensor:
    """What diffusers' pipeline makes of tensors (b, h, w, c), (b,) and (b, s, c): it turns time and sign around."""
    images = [image.permute(2, 0, 1)[:, None] for image in sample]
    captions = [prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)]
    size = 2 if 2 in module.all_patch_size else module.all_patch_size[0]
    found = module(images, (1000 - timesteps) / 1000, captions, return_dict=False, patch_size=size)
    return -torch.stack([image[:, 0].permute(1, 2, 0) for image in found[0]])
