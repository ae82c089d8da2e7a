"""GroupNorm with its SiLU, and RMSNorm: they move most of the memory that a denoiser moves outside of its products.

Differentiated as they stand, norms keep normalised (and activated) copies of their input for the backward pass. Here
they keep the input alone: both passes read it twice and write once, and what lies between is made on the way.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.params import Array

Features = Float[Array, "b *pixels c"]
Channels = Float[Array, " c"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x: Features, scale: Channels, bias: Channels, groups: int, eps: float, silu: bool) -> Features:
    """torch `GroupNorm` over channels last, and SiLU after it if asked, in the dtype of `x`; statistics in float32."""
    return group_norm_forward(x, scale, bias, groups, eps, silu)[0]


Saved = tuple[Array, Array, Array, Array, Array]


def group_norm_forward(x: Array, scale: Array, bias: Array, groups: int, eps: float, silu: bool) -> tuple[Array, Saved]:
    """Keeps the input, the parameters and each group's statistics."""
    mean, rstd = statistics(x, groups, eps)
    y = normalised(x, mean, rstd) * scale + bias
    return (nnx.silu(y) if silu else y).astype(x.dtype), (x, scale, bias, mean, rstd)


def statistics(x: Array, groups: int, eps: float) -> tuple[Array, Array]:
    """Returns mean and 1 / standard deviation of every channel's group, (b, 1, ..., 1, c) float32.

    Sums over pixels come first: channels are neighbours in memory, their groups are not. Of bfloat16 values, whose
    squares float32 holds exactly, both sums are taken in one pass; float32 values are centred before they are squared.
    """
    values, pixels = x.astype(jnp.float32), tuple(range(1, x.ndim - 1))

    def mean_of(values: Array) -> Array:
        return over_groups(jnp.mean(values, axis=pixels, keepdims=True), groups)

    mean = mean_of(values)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(mean_of(values * values) - mean * mean, 0.0)
    else:
        variance = mean_of(jnp.square(values - mean))
    return mean, jax.lax.rsqrt(variance + eps)


def over_groups(channels: Array, groups: int) -> Array:
    """Returns the mean over each channel's group of (..., c) values, for every channel."""
    size = channels.shape[-1] // groups
    means = jnp.mean(channels.reshape(*channels.shape[:-1], groups, size), axis=-1, keepdims=True)
    return jnp.broadcast_to(means, (*means.shape[:-1], size)).reshape(channels.shape)


def normalised(x: Features, mean: Float[Array, "b *ones c"], rstd: Float[Array, "b *ones c"]) -> Features:
    """(x - mean) / standard deviation in float32."""
    return (x.astype(jnp.float32) - mean) * rstd


def group_norm_backward(groups: int, eps: float, silu: bool, saved: Saved, grad: Array) -> tuple[Array, Array, Array]:
    """Returns the gradients with respect to input, scale and bias.

    Sums and result come from the same values. Of bfloat16 arrays these are made twice, behind a barrier: a GPU's
    compiler would write them out in float32, twice the size of the input, to make them once.
    """
    x, scale, bias, mean, rstd = saved
    pixels = tuple(range(1, x.ndim - 1))
    z, grad_y = z_and_grad(x, grad, scale, bias, mean, rstd, silu)
    sums = (jnp.mean(grad_y, axis=pixels, keepdims=True), jnp.mean(grad_y * z, axis=pixels, keepdims=True))
    means = tuple(over_groups(total * scale, groups) for total in sums)
    if x.dtype == jnp.bfloat16:
        x, grad, means = jax.lax.optimization_barrier((x, grad, means))
        z, grad_y = z_and_grad(x, grad, scale, bias, mean, rstd, silu)
    plain, along = means
    grad_x = rstd * (grad_y * scale - plain - z * along)
    count = x.size // (x.shape[0] * x.shape[-1])
    grad_bias, grad_scale = (count * total.reshape(x.shape[0], -1).sum(axis=0) for total in sums)
    return grad_x.astype(x.dtype), grad_scale.astype(scale.dtype), grad_bias.astype(bias.dtype)


def z_and_grad(
    x: Array, grad: Array, scale: Array, bias: Array, mean: Array, rstd: Array, silu: bool
) -> tuple[Array, Array]:
    """Returns z, the normalised input, and the gradient with respect to z * scale + bias, in float32."""
    z, grad_y = normalised(x, mean, rstd), grad.astype(jnp.float32)
    if not silu:
        return z, grad_y
    y = z * scale + bias
    gate = jax.nn.sigmoid(y)
    return z, grad_y * gate * (1 + y * (1 - gate))


group_norm.defvjp(group_norm_forward, group_norm_backward)


class GroupNorm(nnx.Module):
    """`group_norm` with its parameters `scale` and `bias`, which stay float32.

    Args:
        silu: apply SiLU to the result.
        dtype: of the result.
    """

    def __init__(self, channels: int, groups: int, eps: float, silu: bool, dtype: jax.typing.DTypeLike):
        self.groups, self.eps, self.silu, self.dtype = groups, eps, silu, dtype
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x: Features) -> Features:
        return group_norm(x.astype(self.dtype), self.scale[...], self.bias[...], self.groups, self.eps, self.silu)


Tokens = Float[Array, "*batch c"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x: Tokens, scale: Channels, eps: float, dtype: jax.typing.DTypeLike) -> Tokens:
    """torch `RMSNorm` over channels last: x / sqrt(mean(x^2) + eps) * scale in float32, rounded once to `dtype`."""
    return rms_norm_forward(x, scale, eps, dtype)[0]


def rms_norm_forward(
    x: Array, scale: Array, eps: float, dtype: jax.typing.DTypeLike
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Keeps the input, the scale and 1 / root mean square."""
    values = x.astype(jnp.float32)
    rrms = jax.lax.rsqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + eps)
    return (values * rrms * scale).astype(dtype), (x, scale, rrms)


def rms_norm_backward(
    eps: float, dtype: jax.typing.DTypeLike, saved: tuple[Array, Array, Array], grad: Array
) -> tuple[Array, Array]:
    """Returns the gradients with respect to input and scale."""
    x, scale, rrms = saved
    z, grad_y = x.astype(jnp.float32) * rrms, grad.astype(jnp.float32)
    grad_z = grad_y * scale
    along = jnp.mean(grad_z * z, axis=-1, keepdims=True)
    grad_x = rrms * (grad_z - z * along)
    grad_scale = jnp.sum(grad_y * z, axis=tuple(range(x.ndim - 1)))
    return grad_x.astype(x.dtype), grad_scale.astype(scale.dtype)


rms_norm.defvjp(rms_norm_forward, rms_norm_backward)


class RMSNorm(nnx.Module):
    """`rms_norm` with its parameter `scale`, which stays float32; the result has `dtype`."""

    def __init__(self, channels: int, eps: float, dtype: jax.typing.DTypeLike):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Tokens) -> Tokens:
        return rms_norm(x, self.scale[...].astype(jnp.float32), self.eps, self.dtype)
