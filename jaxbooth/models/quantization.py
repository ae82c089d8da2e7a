"""Kernels of a frozen model in 8 or 4 bits: which ones, in which numbers, and back.

A kernel W is stored as codes C and scales S with W = S v(C). int8 and fp8 have one scale for each output and v(C) = C;
int4 and nf4 have one for each output and block of inputs, and two codes in a byte. nf4 (Dettmers et al. 2023, QLoRA,
arXiv 2305.14314, appendix E) spaces its sixteen values as a normal distribution's quantiles. Scales are bfloat16
numbers that are chosen before the codes, so that no rounding of theirs is left: what remains is that of the codes.

Among parameters, codes stand under the kernel's own name, and scales beside them under `<layer>.kernel_scale`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int32, Integer

from jaxbooth.params import KERNEL_SCALE, Array, Shapes

Quantization = Literal["none", "int8", "fp8", "int4", "nf4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
BLOCKWISE: tuple[Quantization, ...] = ("int4", "nf4")
BLOCK = 64  # inputs that share a scale; fewer where that does not divide a layer's
MIN_BLOCK = 16  # of a layer with fewer in a block, scales would take as much as they save
MIN_SIZE = 2**12  # weights of a kernel; smaller ones do not matter

# What lies in numbered blocks is quantized, except for what turns the timestep into scales and shifts. Outside of them
# are the first and the last layer, and what embeds timesteps, sizes and prompts.
IN_BLOCK = re.compile(r".*\.\d+\..*\bkernel")
KEPT = re.compile(r"(.*\.)?(\w*embed\w*|all_x_\w+|all_final_\w+|adaLN_modulation|time_emb_proj|\w*modulation\w*)\..*")

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
LIMITS: dict[str, float] = {
    "int8": 127.0,
    "fp8": float(ml_dtypes.finfo(jnp.float8_e4m3fn).max),
    "int4": 7.0,
    "nf4": 1.0,
}
CODE_DTYPES: dict[str, Any] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": np.int8, "nf4": np.uint8}
SCALE_DTYPE = np.dtype(ml_dtypes.bfloat16)


class Quantized(NamedTuple):
    """A quantized kernel, or the shapes of one.

    Attributes:
        codes: (*window, fan_in, fan_out) int8 or float8_e4m3fn, or of half the fan-in: a block's first half in the low
            bits, its second half in the high ones, int8 for int4 and uint8 for nf4.
        scale: bfloat16, (fan_out,) or, of blocks, (*window, blocks, fan_out).
    """

    codes: Any
    scale: Any


def block_size(fan_in: int) -> int:
    """Returns the largest even number up to BLOCK that divides a layer's inputs; 1 if there is none."""
    return next((size for size in range(BLOCK, 1, -2) if fan_in % size == 0), 1)


def quantized_kernels(shapes: Mapping[str, Any], kind: Quantization) -> list[str]:
    """Returns the kernels of a component that are quantized.

    Args:
        shapes: name -> shape of each of its parameters.
    """
    if kind == "none":
        return []
    names = [name for name in shapes if IN_BLOCK.fullmatch(name) and not KEPT.fullmatch(name)]
    large = [name for name in names if np.prod(shapes[name].shape) >= MIN_SIZE]
    return [name for name in large if kind not in BLOCKWISE or block_size(shapes[name].shape[-2]) >= MIN_BLOCK]


def stored_shapes(shapes: Shapes, kind: Quantization, dtype: jax.typing.DTypeLike) -> Shapes:
    """Returns the shapes and dtypes that a component's frozen parameters are held in.

    Args:
        dtype: of what is not quantized.
    """
    stored = {name: jax.ShapeDtypeStruct(leaf.shape, dtype) for name, leaf in shapes.items()}
    for name in quantized_kernels(shapes, kind):
        stored[name], stored[name + KERNEL_SCALE] = quantized_shape(shapes[name].shape, kind)
    return stored


def quantized_shape(shape: tuple[int, ...], kind: Quantization) -> Quantized:
    """Returns the shapes and dtypes of a kernel's codes and scales."""
    *window, fan_in, fan_out = shape
    if kind not in BLOCKWISE:
        scale = jax.ShapeDtypeStruct((fan_out,), SCALE_DTYPE)
        return Quantized(jax.ShapeDtypeStruct(shape, CODE_DTYPES[kind]), scale)
    codes = jax.ShapeDtypeStruct((*window, fan_in // 2, fan_out), CODE_DTYPES[kind])
    return Quantized(codes, jax.ShapeDtypeStruct((*window, fan_in // block_size(fan_in), fan_out), SCALE_DTYPE))


def quantize(kernel: Float[Array, "*window fan_in fan_out"], kind: Quantization) -> Quantized:
    """Quantizes a kernel, symmetrically, by the largest magnitude of an output or of a block of it. Pure."""
    *window, fan_in, fan_out = kernel.shape
    if kind not in BLOCKWISE:
        columns = kernel.reshape(-1, fan_out).astype(jnp.float32)
        scale = scale_for(jnp.abs(columns).max(axis=0), kind)
        codes = nearest_codes(columns / scale, kind)
        return Quantized(codes.reshape(kernel.shape), scale.astype(SCALE_DTYPE))
    block = block_size(fan_in)
    blocks = kernel.reshape(*window, fan_in // block, block, fan_out).astype(jnp.float32)
    scale = scale_for(jnp.abs(blocks).max(axis=-2), kind)
    codes = nearest_codes(blocks / scale[..., None, :], kind)
    low, high = jnp.split(codes, 2, axis=-2)
    packed = (low & np.asarray(15, codes.dtype)) | (high << np.asarray(4, codes.dtype))
    return Quantized(packed.reshape(*window, fan_in // 2, fan_out), scale.astype(SCALE_DTYPE))


def scale_for(largest: Float[Array, "*shape"], kind: Quantization) -> Float[Array, "*shape"]:
    """Returns scales of bfloat16's precision, as float32; 1 for zeros."""
    exact = jnp.where(largest == 0, LIMITS[kind], largest) / LIMITS[kind]
    return jax.lax.reduce_precision(exact, exponent_bits=8, mantissa_bits=7)  # a cast and back, XLA may leave out


def nearest_codes(values: Float[Array, "*shape"], kind: Quantization) -> Array:
    """Returns the codes of the representable numbers next to scaled values."""
    limit = LIMITS[kind]
    within = jnp.clip(values, -limit, limit)
    if kind == "fp8":
        return within.astype(CODE_DTYPES[kind])
    if kind != "nf4":
        return jnp.rint(within).astype(CODE_DTYPES[kind])
    exact = np.asarray(NF4_VALUES, np.float32)
    codes = jnp.zeros(values.shape, jnp.uint8)
    for boundary in (exact[1:] + exact[:-1]) / 2:
        codes += within > boundary
    return codes


def is_blockwise(scale: Any) -> bool:
    """Whether scales are those of blocks, whose codes are packed."""
    return scale.ndim > 1


def unpack(codes: Integer[Array, "*window half fan_out"], scale: Array) -> Float[Array, "*window blocks block fan_out"]:
    """Returns the float32 numbers that packed codes stand for, before they are scaled.

    They are taken apart as bytes: in front of the reshaping into blocks, a TPU stores them, in what dtype they have.
    """
    *window, half, fan_out = codes.shape
    pairs = codes.reshape(*window, scale.shape[-2], half // scale.shape[-2], fan_out)
    four = np.asarray(4, codes.dtype)
    if codes.dtype == jnp.int8:
        low, high = (pairs << four) >> four, pairs >> four  # of a signed number, the sign goes with the shift
        return jnp.concatenate([low, high], axis=-2).astype(jnp.float32)
    low, high = pairs & np.asarray(15, codes.dtype), pairs >> four
    return nf4_values(jnp.concatenate([low, high], axis=-2).astype(jnp.int32))


def nf4_values(codes: Int32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the float32 numbers of nf4 codes, by comparing: a product can take that in, and no table look-up."""
    return jax.lax.select_n(codes, *(jnp.full(codes.shape, value, jnp.float32) for value in NF4_VALUES))


def dequantize(codes: Array, scale: Array, dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
    """Returns a kernel (*window, fan_in, fan_out), computed in float32."""
    if not is_blockwise(scale):
        return (codes.astype(jnp.float32) * scale.astype(jnp.float32)).astype(dtype)
    *window, half, fan_out = codes.shape
    blocks = unpack(codes, scale) * scale.astype(jnp.float32)[..., None, :]
    return blocks.astype(dtype).reshape(*window, 2 * half, fan_out)


def full_kernel(kernel: Array, scale: Array | None) -> Float[Array, "*fan_in fan_out"]:
    """Returns a kernel in float32.

    Args:
        kernel: itself, or its codes if there is a scale.
    """
    return kernel.astype(jnp.float32) if scale is None else dequantize(kernel, scale)
