"""bfloat16 compute: every sum over rows or pixels is float32, so that gradients are as good as torch autocast's."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.models.attention_kernels import chunked_attention, xla_attention
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module, cast_matrices
from jaxbooth.storage.text import read_json
from jaxbooth.training.batch import make_batch
from jaxbooth.training.step import gradients, make_dispatch
from jaxbooth.weights.names import import_axes, torch_name
from tests.low_precision import bfloat16_sums, errors_by_kind
from tests.torch_parity import to_torch, torch_state
from tests.training import first_micro_batch, setup

ROWS, BATCHES = (4, 4), 4
FEW = 64  # elements that bfloat16 may add up
LIKE_TORCH = 1.2  # times torch's error: rounding is as good as random, and means over a few batches still differ


@pytest.fixture(scope="module")
def short(micro) -> BaseModel:
    """`micro` in bfloat16."""
    network = abstract_module(lambda rngs: UNet2DConditionModel(micro.denoiser_config, Layers(rngs, jnp.bfloat16)))
    return dataclasses.replace(
        BaseModel.read(DEMO_MODEL, "bfloat16"), denoiser_config=micro.denoiser_config, denoiser=network
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": {"rank": 4, "targets": "attention+ff+conv"}},
        {"lora": {"rank": 4, "targets": "attention+ff+conv", "kind": "dora"}},
        {"text_encoder": True, "text": {"placeholder_tokens": ["<sks>"]}},
    ],
    ids=["whole", "lora", "dora", "text"],
)
def test_a_lowered_step_adds_up_no_more_than_a_few_numbers_in_bfloat16(short, micro_params, mesh, settings):
    spec, state, frozen, source, key = setup(short, micro_params, mesh, ROWS, **settings)
    counts = bfloat16_sums(make_dispatch(spec, 2, state).lower(state, frozen, source, key, np.int32(1)))
    assert all(count <= FEW for count in counts)


def in_torch(unet, made, step, dtype):
    """Gradients of one batch through diffusers' UNet, under autocast unless `dtype` is float32."""
    spec, text = made.spec, made.source.cache.text
    batch = jax.jit(lambda step: make_batch(spec, made.source, made.key, step, first_micro_batch(spec)))(
        jnp.int32(step)
    )
    examples = batch.examples
    noisy = to_torch(np.asarray(spec.base.schedule.add_noise(examples.latents, examples.noise, examples.timesteps)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        timesteps = torch.tensor(np.asarray(examples.timesteps)).long()
        output = unet(noisy, timesteps, torch.tensor(np.asarray(text.prompt_embeds[batch.caption]))).sample
    squares = torch.square(output.float() - to_torch(np.asarray(examples.noise))).mean(dim=(1, 2, 3))
    return torch_gradients(unet, (torch.tensor(np.asarray(examples.weight)) * squares).sum(), spec.base.denoiser.shapes)


def torch_gradients(module, loss, names):
    """Gradients of a loss under jaxbooth's names."""
    module.zero_grad()
    loss.backward()
    grads = {name: p.grad.float().numpy().copy() for name, p in module.named_parameters()}
    return {name: np.transpose(g := grads[torch_name(name)], import_axes(name, g.ndim)) for name in names}


def of_step(base, params, mesh, settings=()):
    """Gradients of the UNet in the train step's own batches."""
    made = setup(base, params, mesh, ROWS, **dict(settings))
    run = jax.jit(lambda params, step: gradients(made.spec, params, made.frozen, made.source, made.key, step)[1])
    found = [run(made.state.params, jnp.int32(step)) for step in range(BATCHES)]
    return [{name.removeprefix("unet."): np.asarray(grad) for name, grad in grads.items()} for grads in found], made


def test_gradients_of_every_kind_of_parameter_are_as_good_as_torch_autocasts(short, micro, micro_params, mesh):
    changed = ("block_out_channels", "down_block_types", "up_block_types", "norm_num_groups")
    config = read_json(DEMO_MODEL / "unet" / "config.json")
    unet = diffusers.UNet2DConditionModel.from_config(
        config | {name: getattr(micro.denoiser_config, name) for name in changed}
    )
    unet.load_state_dict(torch_state(micro_params["unet"]))
    ours, made = of_step(short, micro_params, mesh)
    exact, autocast = (
        [in_torch(unet, made, step, dtype) for step in range(BATCHES)] for dtype in (torch.float32, torch.bfloat16)
    )
    found, expected = errors_by_kind(ours, exact), errors_by_kind(autocast, exact)
    kinds = {f"{kind} {leaf}" for kind in ("conv", "linear", "time") for leaf in ("kernel", "bias")}
    assert set(found) == kinds | {"norm scale", "norm bias", "whole"}
    for kind, error in found.items():
        assert error <= LIKE_TORCH * expected[kind], kind


def test_gradients_of_embeddings_are_as_good_as_torch_autocasts(base, short, params):
    ids = np.random.default_rng(0).integers(0, 4, (64, 32))  # four tokens, each of them 512 times
    weights = np.random.default_rng(1).normal(1, 1, (64, 32, 128)).astype(np.float32)
    values, encoder = params["text_encoder"], short.text.encoders[0]

    def loss(values):
        model = encoder.module.bind(values)
        return jnp.sum(model.final_layer_norm(model(jnp.asarray(ids))[-1]) * weights)

    ours = jax.jit(jax.grad(lambda values: loss(cast_matrices(values, jnp.bfloat16))))(values)
    module = transformers.CLIPTextModel.from_pretrained(DEMO_MODEL / "text_encoder", torch_dtype=torch.float32)
    grads = []
    for is_short in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_short):
            features = module(torch.tensor(ids)).last_hidden_state
        grads.append(torch_gradients(module, (features.float() * torch.tensor(weights)).sum(), values))
    exact, autocast = grads
    found, expected = errors_by_kind([ours], [exact]), errors_by_kind([autocast], [exact])
    assert {"token embedding", "position embedding"} <= set(found)
    for kind, error in found.items():
        assert error <= LIKE_TORCH * expected[kind], kind


def test_gradients_of_keys_and_values_are_summed_over_chunks_in_float32(rng):
    shape = (1, 512, 1, 8)
    query, key, value, weights = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4))

    def grads(form):
        return jax.jit(jax.grad(lambda *args: jnp.sum(form(*args) * weights, dtype=jnp.float32), (1, 2)))

    whole = grads(xla_attention)(*(x.astype(jnp.float32) for x in (query, key, value)))
    parts = grads(lambda *args: chunked_attention(*args, longest=1))(query, key, value)
    for found, expected in zip(parts, whole, strict=True):
        assert np.linalg.norm(np.float32(found) - expected) < 5e-3 * np.linalg.norm(expected)
