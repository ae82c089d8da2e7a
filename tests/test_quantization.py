"""Kernels in 8 and 4 bits: how exact, how large, which ones, and products with them."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxbooth.models.conv import conv2d
from jaxbooth.models.fused import project_from_parts, project_to_parts
from jaxbooth.models.layers import Layers
from jaxbooth.models.quantization import (
    NF4_VALUES,
    QUANTIZATIONS,
    block_size,
    dequantize,
    quantize,
    quantized_kernels,
    quantized_shape,
)
from jaxbooth.models.quantized_product import quantized_product, with_barrier, with_zero
from jaxbooth.params import KERNEL_SCALE, abstract_module, cast_matrices
from jaxbooth.sharding import make_mesh, mesh_context, param_shardings
from jaxbooth.weights.quantized_load import quantize_param

KINDS = QUANTIZATIONS[1:]
# Largest error of a normally distributed kernel, root mean square, as a share of the kernel's.
BOUNDS = {"int8": 0.01, "fp8": 0.03, "int4": 0.12, "nf4": 0.10}
MIB = 2**20


def kernel_of(shape, seed=0):
    return (0.05 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def rms(values):
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(320, 640), (3, 3, 64, 96)], ids=["linear", "conv"])
def test_the_error_of_a_kernel_is_within_the_bound_of_its_kind(kind, shape):
    kernel = kernel_of(shape)
    error = rms(dequantize(*quantize(kernel, kind)) - kernel) / rms(kernel)
    assert BOUNDS[kind] / 2 < error < BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fan_in", [64, 320, 682])
def test_codes_and_scales_have_the_announced_shapes(kind, fan_in):
    found, announced = quantize(kernel_of((3, 3, fan_in, 8)), kind), quantized_shape((3, 3, fan_in, 8), kind)
    assert [(part.shape, part.dtype) for part in found] == [(part.shape, part.dtype) for part in announced]


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.0125), ("fp8", 8.0125), ("int4", 4.25), ("nf4", 4.25)])
def test_bits_for_each_weight(kind, bits):
    size = sum(np.asarray(part).nbytes for part in quantize(kernel_of((1280, 640)), kind))
    assert 8 * size / (1280 * 640) == pytest.approx(bits)


@pytest.mark.parametrize(("fan_in", "block"), [(320, 64), (682, 62), (96, 48), (31, 1), (24, 24)])
def test_a_block_is_the_largest_even_divisor(fan_in, block):
    assert block_size(fan_in) == block


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_representable_stays_as_it_is(kind, rng):
    codes = {
        "int8": rng.integers(-127, 128, (128, 8)), "int4": rng.integers(-7, 8, (128, 8)),
        "fp8": rng.normal(size=(128, 8)).astype(ml_dtypes.float8_e4m3fn), "nf4": rng.choice(NF4_VALUES, (128, 8)),
    }[kind].astype(np.float32)  # fmt: skip
    codes[::64] = {"int8": 127, "int4": -7, "fp8": -448, "nf4": 1}[kind]
    kernel = codes * np.float32(2.0**-6)
    np.testing.assert_array_equal(dequantize(*quantize(kernel, kind)), kernel)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    assert not np.any(dequantize(*quantize(np.zeros((64, 4), np.float32), kind)))


def test_nf4_has_sixteen_values_and_takes_the_nearest():
    midpoints = (np.array(NF4_VALUES[1:]) + NF4_VALUES[:-1]) / 2
    values = np.concatenate([NF4_VALUES, midpoints - 1e-4, midpoints + 1e-4, np.zeros(18)]).astype(np.float32)
    found = np.asarray(dequantize(*quantize(values[:, None], "nf4")))[:, 0]
    nearest = np.array(NF4_VALUES, np.float32)[np.abs(values[:, None] - NF4_VALUES).argmin(axis=1)]
    np.testing.assert_array_equal(found, nearest)


PRODUCTS = {
    "linear": ((2, 5, 96), (96, 24), lambda x, kernel: x @ kernel),
    "pointwise": ((2, 4, 4, 96), (1, 1, 96, 24), lambda x, kernel: x @ kernel[0, 0]),
    "conv": ((2, 6, 6, 32), (3, 3, 32, 24), lambda x, kernel: conv2d(x, kernel, 1, 1)),
    "strided": ((2, 6, 6, 32), (3, 3, 32, 24), lambda x, kernel: conv2d(x, kernel, 2, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", PRODUCTS)
def test_a_product_and_its_gradient_are_those_of_the_kernel_that_the_codes_stand_for(kind, layer, rng):
    x_shape, kernel_shape, product = PRODUCTS[layer]
    x, (codes, scale) = rng.normal(size=x_shape).astype("f4"), quantize(kernel_of(kernel_shape), kind)
    kernel = dequantize(codes, scale)

    def loss(function):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(function(x)))))

    with jax.default_matmul_precision("float32"):
        value, gradient = loss(lambda x: quantized_product(product, x.shape, x, codes, scale))(x)
        expected, expected_gradient = loss(lambda x: product(x, kernel))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_happens_to_codes_that_wait(kind):
    codes, x = quantize(kernel_of((64, 8)), kind).codes, np.full((3, 4), -2.5, np.float32)
    for wait in (with_barrier, with_zero):
        found = jax.jit(wait)(codes, x)
        assert found.dtype == codes.dtype
        np.testing.assert_array_equal(np.asarray(found).view(np.uint8), np.asarray(codes).view(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_one_kernel_at_a_time_is_there_in_the_compute_dtype(kind):
    """Of 12 layers of 1 MiB in float32, forward and backward, XLA's CPU compiler holds two or three."""
    layers, width = 12, 512
    parts = quantized_shape((width, width), kind)

    def loss(biases, x, kernels):
        for bias, (codes, scale) in zip(biases, kernels, strict=True):
            x = jnp.tanh(quantized_product(jnp.matmul, x.shape, x, codes, scale) + bias)
        return jnp.sum(x)

    vector, x = jax.ShapeDtypeStruct((width,), np.float32), jax.ShapeDtypeStruct((8, width), np.float32)
    compiled = jax.jit(jax.grad(loss)).lower([vector] * layers, x, [parts] * layers).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * MIB


def test_first_and_last_layers_and_embedders_are_kept(base):
    names = quantized_kernels(base.denoiser.shapes, "nf4")
    kernels = [name for name in base.denoiser.shapes if name.endswith(".kernel")]
    kept = sorted({re.sub(r".*\.(?=time_emb_proj)", "", name) for name in set(kernels) - set(names)})
    expected = ["conv_in", "conv_out", "time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2"]
    assert kept == [f"{layer}.kernel" for layer in expected]
    assert quantized_kernels(base.denoiser.shapes, "none") == []


@pytest.mark.parametrize(("family", "layers"), [("zimage", 4), ("klein", 3)])
def test_of_transformers_the_blocks_are_quantized_and_what_modulates_them_is_not(
    family, layers, monkeypatch, flow_model
):
    monkeypatch.setattr("jaxbooth.models.quantization.MIN_SIZE", 1)
    names = quantized_kernels(flow_model(family).base.denoiser.shapes, "int8")
    assert len({".".join(name.split(".")[:2]) for name in names}) == layers
    assert not [name for name in names if re.search("embed|modulation|final|proj_out|norm_out", name)]


def test_the_head_of_a_step_casts_no_codes():
    codes, scale = quantize(kernel_of((64, 8)), "int8")
    cast = cast_matrices({"a.kernel": codes, "a.kernel" + KERNEL_SCALE: scale}, jnp.float16)
    assert [value.dtype for value in cast.values()] == [jnp.int8, jnp.bfloat16]


def linear_layer(inputs, outputs):
    """A module of one layer, under a name that `tensor` splits."""
    return abstract_module(lambda rngs: Layers(rngs).linear(inputs, outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_quantized_to_the_same_codes_wherever_its_pieces_lie(kind):
    mesh, kernel = make_mesh(fsdp=4, tensor=2), kernel_of((256, 128))
    name = "layers.0.attention.to_q.kernel"
    placed = jax.device_put(kernel, param_shardings(mesh)(name, kernel.shape))
    found = quantize_param(name, placed, param_shardings(mesh), kind)
    expected = quantize(kernel, kind)
    assert list(found) == [name, name + KERNEL_SCALE]
    for value, reference in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(value).view(np.uint8), np.asarray(reference).view(np.uint8))
    assert found[name].sharding.spec == param_shardings(mesh)(name, found[name].shape).spec != ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [(128, 128, 256), (96, 96, 192)], ids=["whole blocks", "cut blocks"])
def test_parts_side_by_side_are_the_same_on_devices_that_share_them(kind, inputs, rng):
    network = linear_layer(sum(inputs), 48)
    codes, scale = quantize(kernel_of((sum(inputs), 48)), kind)
    params = {"kernel": codes, "kernel" + KERNEL_SCALE: scale, "bias": kernel_of((48,), 1)}
    parts = [rng.normal(size=(2, 3, width)).astype("f4") for width in inputs]

    def run():
        layer = network.bind(params)
        outputs = project_from_parts(layer, parts)
        return outputs, project_to_parts(layer, jnp.concatenate(parts, axis=-1), (16, 16, 16))

    alone = jax.jit(run)()
    with mesh_context(make_mesh(tensor=2)):
        shared = jax.jit(run)()
    for found, expected in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
