"""GroupNorm with SiLU, and RMSNorm, against torch in float64, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.models.norms import group_norm, rms_norm

GROUPS, EPS = 8, 1e-5
NAMES = ("output", "input", "scale", "bias")


def values(rng, offset=0.0):
    """Input, scale, bias and the gradient of the output; `offset` is in standard deviations."""
    x = rng.normal(size=(2, 6, 5, 32)) + offset
    return [x, rng.normal(size=32), rng.normal(size=32), rng.normal(size=x.shape)]


def of_torch(x, scale, bias, grad, silu):
    """Output and the three gradients in float64."""
    leaves = [torch.tensor(value, requires_grad=True) for value in (np.moveaxis(x, -1, 1), scale, bias)]
    y = torch.nn.functional.group_norm(leaves[0], GROUPS, *leaves[1:], EPS)
    y = torch.nn.functional.silu(y) if silu else y
    y.backward(torch.tensor(np.moveaxis(grad, -1, 1)))
    found = [y.detach(), *(leaf.grad for leaf in leaves)]
    return [np.moveaxis(value.numpy(), 1, -1) if value.ndim == 4 else value.numpy() for value in found]


def of_jax(x, scale, bias, grad, silu, dtype=jnp.float32):
    """The same, with input and output in `dtype`."""
    y, pull = jax.vjp(
        lambda x, scale, bias: group_norm(x, scale, bias, GROUPS, EPS, silu),
        jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32),
    )  # fmt: skip
    return [np.asarray(value, np.float64) for value in (y, *pull(jnp.asarray(grad, dtype)))]


def errors(found, expected):
    """Largest error of each, relative to the largest value."""
    return {name: np.abs(a - b).max() / np.abs(b).max() for name, a, b in zip(NAMES, found, expected, strict=True)}


@pytest.mark.parametrize("silu", [False, True])
def test_float32_is_torchs_to_rounding(rng, silu):
    inputs = values(rng)
    worst = errors(of_jax(*inputs, silu), of_torch(*inputs, silu))
    assert max(worst.values()) < 2e-6, worst  # sums over 240 values


def test_a_large_mean_costs_float32_no_more_than_its_own_rounding(rng):
    inputs = values(rng, offset=1000.0)
    inputs[0] = inputs[0].astype(np.float32).astype(np.float64)
    found, expected = of_jax(*inputs, True), of_torch(*inputs, True)
    # One rounding of x - mean is 1000 x 6e-8 standard deviations; squares of uncentred values would lose 1e6 x 6e-8.
    assert errors(found, expected)["output"] < 1e-4


def test_bfloat16_is_off_by_its_own_rounding_alone(rng):
    inputs = values(rng, offset=3.0)
    rounded = [np.asarray(jnp.asarray(value, jnp.bfloat16), np.float64) for value in inputs]
    inputs[0], inputs[3] = rounded[0], rounded[3]
    worst = errors(of_jax(*inputs, True, jnp.bfloat16), of_torch(*inputs, True))
    assert max(worst["output"], worst["input"]) < 2.0**-8  # half a unit in the last place of 8 bits
    assert max(worst["scale"], worst["bias"]) < 1e-5  # float32


def test_the_backward_pass_keeps_no_copy_of_the_input():
    x = jnp.zeros((2, 8, 8, 32), jnp.bfloat16)
    ones = jnp.ones(32)
    pull = jax.vjp(lambda x: group_norm(x, ones, ones, GROUPS, EPS, True), x)[1]
    kept = sorted(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept[-1] == x.size
    assert sum(size >= x.size for size in kept) == 1


def rms_errors(rng, dtype):
    """Largest errors of output, input's and scale's gradient, relative to the largest value."""
    x, scale, grad = rng.normal(size=(2, 5, 33)), rng.normal(size=33), rng.normal(size=(2, 5, 33))
    x, grad = (np.asarray(jnp.asarray(value, dtype), np.float64) for value in (x, grad))
    leaves = [torch.tensor(value, requires_grad=True) for value in (x, scale)]
    y = torch.nn.functional.rms_norm(leaves[0], (33,), leaves[1], EPS)
    y.backward(torch.tensor(grad))
    out, pull = jax.vjp(
        lambda x, scale: rms_norm(x, scale, EPS, dtype), jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32)
    )
    assert out.dtype == dtype
    found = [np.asarray(value, np.float64) for value in (out, *pull(jnp.asarray(grad, dtype)))]
    expected = [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]


def test_rms_norm_is_torchs_to_rounding(rng):
    assert max(rms_errors(rng, jnp.float32)) < 1e-6


def test_rms_norm_rounds_bfloat16_once(rng):
    output, of_input, of_scale = rms_errors(rng, jnp.bfloat16)
    assert max(output, of_input) < 2**-8  # half a unit in the last of eight bits
    assert of_scale < 1e-6  # summed and kept in float32


def test_rms_norm_keeps_its_input_as_it_is_and_one_number_a_token():
    x = jnp.ones((4, 64), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(lambda x, scale: rms_norm(x, scale, EPS, jnp.bfloat16), x, jnp.ones(64))[1])
    assert sorted((leaf.size, leaf.dtype.name) for leaf in kept) == [
        (4, "float32"), (64, "float32"), (256, "bfloat16"),
    ]  # fmt: skip
