"""An exported run in PyTorch diffusers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.sampling import ImageSampler, SamplingConfig, image_keys
from jaxbooth.pipeline import Pipeline
from jaxbooth.weights.diffusers_write import write_folder

PROMPTS = ["an emoji of a cat", "an emoji of a red apple"]
STEPS, GUIDANCE = 12, 4.0


@pytest.fixture(scope="module")
def moved(params, mesh):
    """The embedded model with every UNet weight moved a little, as training would."""
    rng = np.random.default_rng(0)
    unet = {
        name: value + 1e-3 * rng.normal(size=value.shape).astype(np.float32) for name, value in params["unet"].items()
    }
    return params | {"unet": unet}


@pytest.fixture(scope="module")
def exported(moved, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    out.mkdir()
    write_folder(DEMO_MODEL, {"unet": moved["unet"]}, out, "float32")
    return out


def test_diffusers_draws_the_same_image(exported, moved, base, mesh):
    settings = SamplingConfig("ddim", STEPS, GUIDANCE, 64)
    ours = ImageSampler(base, mesh, settings, 2).generate(moved, PROMPTS, seed=3, indices=[0, 1])
    keys = [jax.random.fold_in(key, 0) for key in image_keys(jax.random.key(3), jnp.arange(2))]
    latents = np.stack([jax.random.normal(key, base.latent_shape(64, 64)) for key in keys])
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(exported, torch_dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS, latents=torch.tensor(latents).permute(0, 3, 1, 2), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="np",
    ).images  # fmt: skip
    assert np.abs(ours / 255.0 - theirs).max() <= 2 / 255
    assert ours.std() > 30  # there is an image


def test_reading_an_export_back_is_the_identity(exported, moved, mesh):
    again = Pipeline.load(exported, mesh=mesh).params["unet"]
    for name, value in moved["unet"].items():
        np.testing.assert_array_equal(again[name], value)
