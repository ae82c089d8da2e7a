"""The UNet of Stable Diffusion 1.5 at its full size, with random weights: what quantizing it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.config.load import load_config
from jaxbooth.models.quantization import dequantize, quantize, quantized_kernels
from jaxbooth.params import KERNEL_SCALE, ModuleDef
from jaxbooth.plan.abstract_step import abstract_base

# Of each kernel, at least and at most: root mean squares, as shares of what is exact.
KERNEL_BOUNDS = {"int8": (0.006, 0.011), "nf4": (0.09, 0.095)}
# The output's error over the kernels'. Of random weights, the errors of all layers add up; with its trained ones, the
# demo's UNet has 0.4 (scripts/quantization_error.py).
GROWTH = 5


@pytest.fixture(scope="module")
def network() -> ModuleDef:
    return abstract_base(load_config("sd15-lora", {"train.dtype": "float32"}), "cpu")[1].denoiser


@pytest.fixture(scope="module")
def weights(network: ModuleDef) -> dict[str, jax.Array]:
    """Kernels of unit gain, unit scales, small biases: 3.2 GiB."""
    draw, weights = np.random.default_rng(0), {}
    for name, leaf in network.shapes.items():
        values = draw.standard_normal(leaf.shape, np.float32)
        values *= np.prod(leaf.shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.1
        values += name.endswith("scale")
        weights[name] = jnp.asarray(values)
    return weights


@pytest.fixture(scope="module")
def output(network: ModuleDef):
    """Returns the output for noise, of latents of 16 x 16 and a prompt of 77 tokens, as a function of the weights."""
    draw = np.random.default_rng(1)
    sample, prompt = draw.standard_normal((1, 16, 16, 4), np.float32), draw.standard_normal((1, 77, 768), np.float32)
    run = jax.jit(lambda params: network.bind(params)(sample, jnp.array([500]), prompt))
    return lambda params: np.asarray(run(params))


@pytest.fixture(scope="module")
def exact(output, weights) -> np.ndarray:
    return output(weights)


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_quantizing_changes(kind, network, weights, output, exact):
    params, restored, errors = dict(weights), dict(weights), []
    for name in quantized_kernels(network.shapes, kind):
        params[name], params[name + KERNEL_SCALE] = jax.jit(quantize, static_argnums=1)(weights[name], kind)
        restored[name] = jax.jit(dequantize)(params[name], params[name + KERNEL_SCALE])
        errors.append(relative_error(np.asarray(restored[name]), np.asarray(weights[name])))
    found = output(params)
    of_output = relative_error(found, exact)
    print(f"{kind}: kernels {min(errors):.2%} to {max(errors):.2%}, output {of_output:.2%}")
    assert len(errors) == 256
    least, most = KERNEL_BOUNDS[kind]
    assert least < min(errors) <= max(errors) < most
    assert 0 < of_output < GROWTH * np.mean(errors)
    np.testing.assert_allclose(found, output(restored), rtol=0, atol=1e-4 * np.abs(found).max())
