"""The loss on held-out images: what it is, and that neither the mesh nor the run's random choices change it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.base.model import BaseModel, encode_prompts, load_params
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.base.trainable import add_trainable
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.params import full_precision
from jaxbooth.runs.held_out_latents import encode_held_out, group_held_out, held_out_captions
from jaxbooth.runs.held_out_loss import HeldOutLoss, named_means
from jaxbooth.runs.inputs import read_inputs
from jaxbooth.sharding import make_mesh
from jaxbooth.training.held_out_loss import (
    HeldOutImages,
    HeldOutSpec,
    bin_timesteps,
    device_rows,
    fixed_noise,
    held_out_losses,
)

PROMPTS = {"instance_prompt": "an emoji of a sks cat", "class_prompt": "an emoji of a cat"}
CLASS_LATENTS = np.random.default_rng(3).normal(size=(3, 8, 8, 4)).astype(np.float32)


def configure(model: Path | str, **settings) -> Config:
    """A run on the embedded cat that holds two of its five images out."""
    data = {"instance_dir": DEMO_SUBJECT, "hold_out": 2, "resolution": 64} | PROMPTS | settings.pop("data", {})
    return Config.model_validate({"model": str(model), "train": {"prior_weight": 0}} | settings | {"data": data})


def measure(config: Config, mesh, class_latents=CLASS_LATENTS) -> dict[str, float]:
    """Reads a run's images and base model, and measures the base model."""
    base = add_trainable(BaseModel.read(Path(config.model), "float32"), config)
    params = load_params(base, mesh)
    inputs = read_inputs(config, base)
    return HeldOutLoss(config, inputs, mesh, params["vae"])(params, class_latents)


@pytest.fixture(scope="module")
def on_one(micro_model, mesh):
    """The losses of the base model on one device."""
    return measure(configure(micro_model), mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1)])
def test_the_losses_are_the_same_bits_on_any_number_of_devices(micro_model, on_one, sizes):
    assert measure(configure(micro_model), make_mesh(*sizes)) == on_one
