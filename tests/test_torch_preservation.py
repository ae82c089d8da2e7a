"""Ten LoRA steps of output preservation against PEFT and PyTorch, whose adapter is switched off for the target."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxbooth.diffusion.loss import Role
from jaxbooth.training.batch import make_batch
from tests.test_torch_lora import (
    RATE,
    TARGETS,
    adamw_in_torch,
    adapter_settings,
    check_same_training,
    torch_adapters,
    torch_unet,
)
from tests.torch_parity import to_torch
from tests.training import first_micro_batch, run, setup

ROWS, WEIGHT = (2, 2), 0.7


def torch_loss(unet, scheduler, batch, text):
    """The instance rows' noise, and on the others what the model says without its adapter."""
    latents, noise = to_torch(np.asarray(batch.latents)), to_torch(np.asarray(batch.noise))
    timesteps = torch.tensor(np.asarray(batch.timesteps), dtype=torch.long)
    noisy, text = scheduler.add_noise(latents, noise, timesteps), torch.tensor(np.asarray(text))
    output = unet(noisy, timesteps, text).sample
    kept = torch.tensor(np.asarray(batch.role)) == int(Role.OUTPUT_PRESERVATION)
    unet.disable_adapters()
    with torch.no_grad():
        target = unet(noisy[kept], timesteps[kept], text[kept]).sample
    unet.enable_adapters()
    instance = torch.nn.functional.mse_loss(output[~kept], noise[~kept])
    return instance + WEIGHT * torch.nn.functional.mse_loss(output[kept], target)


def test_ten_adamw_steps_are_equal(micro, micro_params, mesh):
    """The adapter starts away from zero, so that there is something to preserve from the first step on."""
    prior = {"method": ["output-preservation"], "weight": WEIGHT}
    spec, state, frozen, source, key = setup(
        micro, micro_params, mesh, ROWS, prior=prior, learning_rate=RATE, lora=adapter_settings(dora=False)
    )
    state = state._replace(params={name: value + 0.01 for name, value in state.params.items()})
    values = jax.device_get(state.params)
    unet = torch_unet(micro, micro_params)
    trained = torch_adapters(unet, values, TARGETS)
    scheduler = diffusers.DDPMScheduler()
    scheduler.alphas_cumprod = torch.tensor(spec.base.schedule.alphas_cumprod, dtype=torch.float32)
    batch_of = jax.jit(lambda step: make_batch(spec, source, key, step, first_micro_batch(spec)))

    def loss_of(step):
        batch = batch_of(jnp.int32(step))
        assert batch.examples.role.tolist() == [Role.INSTANCE] * 2 + [Role.OUTPUT_PRESERVATION] * 2
        return torch_loss(unet, scheduler, batch.examples, source.cache.text.prompt_embeds[batch.caption])

    losses = adamw_in_torch(trained, loss_of)
    ours = run(spec, state, frozen, source, key, [4, 4, 2])
    check_same_training(ours, (trained, losses), values)
    np.testing.assert_allclose(ours[1]["loss"], losses, rtol=1e-6)
    assert min(ours[1]["output_preservation_loss"]) > 1e-5  # there is something to compare
