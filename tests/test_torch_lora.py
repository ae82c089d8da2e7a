"""Ten LoRA and DoRA steps against PEFT and PyTorch: same weights, batches, noise and timesteps."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.training.batch import make_batch
from jaxbooth.weights.names import export_array
from tests.test_torch_step import torch_loss
from tests.torch_parity import torch_state
from tests.training import first_micro_batch, run, setup

STEPS, ROWS, PRIOR_WEIGHT, RATE, RANK, ALPHA = 10, (2, 2), 0.7, 1e-4, 4, 2.0
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "ff.net.2"]
REGEX = r"unet\.(.*\.)(" + "|".join(target.replace(".", r"\.") for target in TARGETS) + ")"
PEFT_NAMES = {
    LORA_A: "lora_A.default.weight",
    LORA_B: "lora_B.default.weight",
    MAGNITUDE: "lora_magnitude_vector.default.weight",
}


def adapter_settings(dora):
    return {"rank": RANK, "alpha": ALPHA, "targets": REGEX, "kind": "dora" if dora else "lora"}


def start(micro, micro_params, mesh, dora):
    return setup(
        micro, micro_params, mesh, ROWS, prior_weight=PRIOR_WEIGHT, learning_rate=RATE, lora=adapter_settings(dora)
    )


def peft_name(name):
    """`<component>.<layer>.lora_A.kernel` -> PEFT's name of the same parameter."""
    leaf = next(leaf for leaf in PEFT_NAMES if name.endswith(leaf))
    return f"{name.partition('.')[2].removesuffix(leaf)}{PEFT_NAMES[leaf]}"


def torch_adapters(model, values, targets, dora=False):
    """Gives a model of diffusers adapters of the given values, and returns them by PEFT's names."""
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=dora))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trained) == {peft_name(name) for name in values}
    for name, value in values.items():
        trained[peft_name(name)].data.copy_(in_peft(name, value, trained[peft_name(name)].shape))
    return trained


def in_peft(name, value, shape):
    """An adapter's value as PEFT has it; DoRA's magnitudes of a convolution have ones beside them."""
    leaf = name if name.endswith(MAGNITUDE) else "x.kernel"
    return torch.from_numpy(export_array(leaf, np.asarray(value))).reshape(shape)


def adamw_in_torch(trained, loss_of):
    """Ten steps of AdamW; returns their losses."""
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    losses = []
    for step in range(STEPS):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check_same_training(ours, theirs, start):
    """Compares (state, metrics) of ten steps with the adapters and losses of PyTorch's."""
    (state, metrics), (trained, losses) = ours, theirs
    np.testing.assert_allclose(metrics["loss"], losses, rtol=2e-6)
    moved = 0.0
    for name, value in state.params.items():
        expected = trained[peft_name(name)].detach()
        np.testing.assert_allclose(in_peft(name, value, expected.shape), expected, atol=1e-5, err_msg=name)
        moved = max(moved, float(np.abs(value - start[name]).max()))
    assert moved > 8e-4  # ten steps of 1e-4, so that the tolerance is not all there is


def torch_unet(micro, micro_params):
    """The same UNet in PyTorch."""
    config = micro.denoiser_config
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=config.block_out_channels, down_block_types=config.down_block_types,
        up_block_types=config.up_block_types, layers_per_block=config.layers_per_block, norm_num_groups=8,
        cross_attention_dim=config.cross_attention_dim, attention_head_dim=config.attention_head_dim,
    )  # fmt: skip
    unet.load_state_dict(torch_state(micro_params["unet"]))
    return unet


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lora", "dora"])
def test_adapters_after_ten_adamw_steps_are_equal(dora, micro, micro_params, mesh):
    spec, state, frozen, source, key = start(micro, micro_params, mesh, dora)
    values = jax.device_get(state.params)
    unet = torch_unet(micro, micro_params)
    trained = torch_adapters(unet, values, TARGETS, dora)
    scheduler = diffusers.DDPMScheduler()
    scheduler.alphas_cumprod = torch.tensor(spec.base.schedule.alphas_cumprod, dtype=torch.float32)
    batch_of = jax.jit(lambda step: make_batch(spec, source, key, step, first_micro_batch(spec)))

    def loss_of(step):
        batch = batch_of(jnp.int32(step))
        return torch_loss(unet, scheduler, batch.examples, source.cache.text.prompt_embeds[batch.caption])[0]

    losses = adamw_in_torch(trained, loss_of)
    check_same_training(run(spec, state, frozen, source, key, [4, 4, 2]), (trained, losses), values)
