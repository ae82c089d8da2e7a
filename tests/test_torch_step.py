"""The training step against a plain PyTorch DreamBooth step: same weights, batches, noise and timesteps."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.training.batch import make_batch
from jaxbooth.training.step import gradients
from jaxbooth.weights.names import import_axes, torch_name
from tests.torch_parity import to_torch
from tests.training import first_micro_batch, run, setup

STEPS, ROWS, PRIOR_WEIGHT, RATE = 10, (2, 2), 0.7, 5e-6


def torch_loss(unet, scheduler, batch, text):
    """mean((eps - unet)^2) over the instance half + lambda * the same over the prior half."""
    latents, noise = to_torch(np.asarray(batch.latents)), to_torch(np.asarray(batch.noise))
    timesteps = torch.tensor(np.asarray(batch.timesteps), dtype=torch.long)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    output = unet(noisy, timesteps, torch.tensor(np.asarray(text))).sample
    is_prior = torch.tensor(np.asarray(batch.is_prior))
    instance = torch.nn.functional.mse_loss(output[~is_prior], noise[~is_prior])
    prior = torch.nn.functional.mse_loss(output[is_prior], noise[is_prior])
    return instance + PRIOR_WEIGHT * prior, instance, prior


@pytest.fixture(scope="module")
def torch_run(micro, micro_params, micro_model, mesh):
    """Losses and first gradients of ten PyTorch steps, and the weights after them."""
    spec, _, _, source, key = setup(micro, micro_params, mesh, ROWS, prior_weight=PRIOR_WEIGHT, learning_rate=RATE)
    unet = diffusers.UNet2DConditionModel.from_pretrained(micro_model / "unet", torch_dtype=torch.float32)
    scheduler = diffusers.DDPMScheduler.from_pretrained(DEMO_MODEL / "scheduler")
    # Both sides take the same float64-made schedule; how it compares with diffusers' own is tested with the schedule.
    scheduler.alphas_cumprod = torch.tensor(spec.base.schedule.alphas_cumprod, dtype=torch.float32)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    batch_of = jax.jit(lambda step: make_batch(spec, source, key, step, first_micro_batch(spec)))
    losses, norms, first = [], [], {}
    for step in range(STEPS):
        batch = batch_of(jnp.int32(step))
        values = torch_loss(unet, scheduler, batch.examples, source.cache.text.prompt_embeds[batch.caption])
        optimizer.zero_grad()
        values[0].backward()
        first = first or {name: p.grad.numpy().copy() for name, p in unet.named_parameters()}
        norms.append(float(torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)))
        optimizer.step()
        losses.append([float(value.detach()) for value in values])
    weights = {name: p.detach().numpy() for name, p in unet.named_parameters()}
    return np.array(losses), np.array(norms), first, weights


@pytest.fixture(scope="module")
def our_run(micro, micro_params, mesh):
    return run(*setup(micro, micro_params, mesh, ROWS, prior_weight=PRIOR_WEIGHT, learning_rate=RATE), [4, 4, 2])


def test_losses_of_ten_steps_are_equal(torch_run, our_run):
    _, metrics = our_run
    found = np.stack([metrics[name] for name in ("loss", "instance_loss", "prior_loss")], axis=1)
    np.testing.assert_allclose(found, torch_run[0], rtol=1e-6, atol=1e-7)


def test_gradient_norms_of_ten_steps_are_equal(torch_run, our_run):
    np.testing.assert_allclose(our_run[1]["grad_norm"], torch_run[1], rtol=1e-4)


def test_gradients_are_equal(torch_run, micro, micro_params, mesh):
    spec, state, frozen, source, key = setup(micro, micro_params, mesh, ROWS, prior_weight=PRIOR_WEIGHT)
    arguments = (state.params, frozen, source, key, jnp.int32(0))
    _, grads = jax.jit(lambda *arguments: gradients(spec, *arguments))(*arguments)
    for name in micro.denoiser.shapes:
        expected = torch_run[2][torch_name(name)]
        expected = expected.transpose(import_axes(name, expected.ndim))
        difference = np.linalg.norm(np.asarray(grads[f"unet.{name}"]) - expected)
        assert difference <= 1e-4 * np.linalg.norm(expected) + 1e-9, name


def test_weights_after_ten_adamw_steps_are_equal(torch_run, our_run, micro, micro_params):
    state, _ = our_run
    moved = 0.0
    for name in micro.denoiser.shapes:
        expected = torch_run[3][torch_name(name)]
        expected = expected.transpose(import_axes(name, expected.ndim))
        np.testing.assert_allclose(state.params[f"unet.{name}"], expected, atol=1e-5, err_msg=name)
        moved = max(moved, np.abs(expected - micro_params["unet"][name]).max())
    assert moved > 4e-5  # ten steps of 5e-6, so that the tolerance is not all there is
