"""Ten LoRA steps of flow models against PEFT and PyTorch: same weights, batches, noise, noise levels and prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

from jaxbooth.models.layers import sinusoidal_embedding
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.training.batch import make_batch
from tests import flux2, zimage
from tests.flow_models import FLOW_FAMILIES, transformer
from tests.test_torch_lora import ALPHA, PRIOR_WEIGHT, RANK, RATE, adamw_in_torch, check_same_training, torch_adapters
from tests.training import first_micro_batch, run, setup

ROWS = (2, 2)
PRESET = "attention+ff"


def velocity(family, model, noisy, timesteps, text):
    """What diffusers' pipelines make of the transformer's output; (b, h, w, c)."""
    if family == "zimage":
        prompts = torch.tensor(text.prompt_embeds)
        return zimage.velocity(model, torch.tensor(noisy), torch.tensor(timesteps), prompts, text.lengths.tolist())
    given = flux2.Inputs(noisy, timesteps, text.prompt_embeds)
    return flux2.in_torch(model, given).permute(0, 2, 3, 1)


def torch_loss(family, model, schedule, batch, text):
    """mean((noise - latents - model)^2) over the instance rows + lambda * the same over the prior rows."""
    latents, noise = torch.tensor(np.asarray(batch.latents)), torch.tensor(np.asarray(batch.noise))
    # Both sides take the same float64-made schedule; how it compares with diffusers' own is tested with the schedule.
    s = torch.tensor(schedule.sigmas[batch.timesteps], dtype=torch.float32).reshape(-1, 1, 1, 1)
    noisy = (1 - s) * latents + s * noise
    timesteps = np.array(schedule.network_timesteps(batch.timesteps))
    error = (velocity(family, model, noisy.numpy(), timesteps, text) - (noise - latents)) ** 2
    is_prior = torch.tensor(np.asarray(batch.is_prior))
    return error[~is_prior].mean() + PRIOR_WEIGHT * error[is_prior].mean()


@pytest.fixture
def same_sinusoids(monkeypatch):
    """Has diffusers take our embedding of the time, where a last bit of a frequency is 1e-5 of Z-Image's output.

    PyTorch's exp is not the correctly rounded one; the transformers themselves are compared with diffusers' own.
    """

    def timestep_embedding(times, width):
        return torch.tensor(np.asarray(sinusoidal_embedding(times.numpy(), width, True, 0)))

    monkeypatch.setattr(TimestepEmbedder, "timestep_embedding", staticmethod(timestep_embedding))


@pytest.mark.usefixtures("same_sinusoids")
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_adapters_after_ten_adamw_steps_are_equal(family, flow_model, mesh):
    base, params = flow_model(family)
    lora = {"rank": RANK, "alpha": ALPHA, "targets": PRESET}
    spec, state, frozen, source, key = setup(
        base, params, mesh, ROWS, prior_weight=PRIOR_WEIGHT, learning_rate=RATE, lora=lora
    )
    values = jax.device_get(state.params)
    model = transformer(family)
    trained = torch_adapters(model, values, target_layers(base.denoiser, "transformer", PRESET))
    batch_of = jax.jit(lambda step: make_batch(spec, source, key, step, first_micro_batch(spec)))

    def loss_of(step):
        batch = batch_of(jnp.int32(step))
        text = jax.tree.map(lambda column: np.array(column[batch.caption]), source.cache.text)
        return torch_loss(family, model, spec.base.schedule, batch.examples, text)

    losses = adamw_in_torch(trained, loss_of)
    check_same_training(run(spec, state, frozen, source, key, [4, 4, 2]), (trained, losses), values)
