"""Images generated with an exported LoRA: diffusers' and jaxbooth's own are the same."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.sampling import ImageSampler, SamplingConfig, image_keys
from jaxbooth.base.trainable import add_trainable, trained_shapes
from jaxbooth.config.run_config import Config
from jaxbooth.export.export import make_export, write_export
from jaxbooth.export.lora import PEFT_FILE
from jaxbooth.params import join

PROMPTS = ["an emoji of a cat", "an emoji of a red apple"]
STEPS, GUIDANCE = 6, 4.0


@pytest.mark.parametrize("file", [PEFT_FILE, "cat_kohya.safetensors"], ids=["peft", "kohya"])
def test_diffusers_generates_the_same_image_with_the_lora(file, base, params, mesh, tmp_path):
    lora = {"rank": 4, "alpha": 2, "targets": "attention+ff+conv"}
    config = Config.model_validate({"lora": lora, "train": {"text_encoder": True}, "data": {"instance_dir": "cats"}})
    adapted, rng = add_trainable(base, config), np.random.default_rng(0)
    shapes = trained_shapes(adapted, config)
    trained = {
        component: {name: (0.08 * rng.normal(size=leaf.shape)).astype(np.float32) for name, leaf in leaves.items()}
        for component, leaves in shapes.items()
    }
    write_export(make_export(adapted, trained, mesh, tmp_path / "cat", "lora"))
    settings = SamplingConfig("ddim", STEPS, GUIDANCE, 64)
    ours = ImageSampler(adapted, mesh, settings, 2).generate(join(params, trained), PROMPTS, seed=3, indices=[0, 1])
    plain = ImageSampler(base, mesh, settings, 2).generate(params, PROMPTS, seed=3, indices=[0, 1])
    assert np.abs(ours.astype(int) - plain).mean() > 10  # the LoRA does something
    keys = [jax.random.fold_in(key, 0) for key in image_keys(jax.random.key(3), jnp.arange(2))]
    latents = np.stack([jax.random.normal(key, base.latent_shape(64, 64)) for key in keys])
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(tmp_path / "cat", weight_name=file)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS, latents=torch.tensor(latents).permute(0, 3, 1, 2), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="np",
    ).images  # fmt: skip
    assert np.abs(ours / 255.0 - theirs).max() <= 2 / 255
