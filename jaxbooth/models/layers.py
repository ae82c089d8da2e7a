"""Layers with torch's conventions: integer padding, torch's epsilons, exact GELU. Activations are NHWC."""

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Num

from jaxbooth.models.broadcast import add_broadcast, broadcast
from jaxbooth.models.conv import Conv
from jaxbooth.models.norms import GroupNorm, RMSNorm
from jaxbooth.models.quantized_product import KernelLayer
from jaxbooth.params import Array


class Linear(KernelLayer):
    """torch `Linear`; parameters `kernel` (in, out) and, if `use_bias`, `bias`.

    Args:
        dtype: computed in.
    """

    def __init__(self, inputs: int, outputs: int, use_bias: bool, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        init = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        y = self.apply_kernel(operator.matmul, x.astype(self.dtype))
        return y if self.bias is None else add_broadcast(y, self.bias[...])


class Embed(nnx.Module):
    """torch `Embedding`; parameter `embedding` (entries, width), in whose dtype its gradient is summed."""

    def __init__(self, entries: int, width: int, rngs: nnx.Rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (entries, width)))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """Returns float32 entries, to which all layers after it add, as under torch's autocast."""
        return jnp.take(self.embedding[...], ids, axis=0).astype(jnp.float32)


class Layers(NamedTuple):
    """Builds leaf layers that compute in `dtype` and hold float32 parameters."""

    rngs: nnx.Rngs
    dtype: jax.typing.DTypeLike = jnp.float32

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> Linear:
        """torch `Linear`; the kernel is stored (in, out)."""
        return Linear(inputs, outputs, bias, self.dtype, self.rngs)

    def conv(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int | None = None) -> Conv:
        """torch `Conv2d` with `padding` pixels on every side (default: `size // 2`); the kernel is stored HWIO."""
        pad = size // 2 if padding is None else padding
        return Conv(inputs, outputs, size, stride, pad, self.dtype, self.rngs)

    def patches(self, inputs: int, outputs: int, size: int, bias: bool = True) -> Conv:
        """torch `Conv2d` over patches side by side, of `size` x `size` pixels."""
        return Conv(inputs, outputs, size, size, 0, self.dtype, self.rngs, bias)

    def group_norm(self, channels: int, groups: int, eps: float, silu: bool = False) -> GroupNorm:
        """torch `GroupNorm`, with `SiLU` after it if asked."""
        return GroupNorm(channels, groups, eps, silu, self.dtype)

    def layer_norm(self, channels: int, eps: float = 1e-5, affine: bool = True) -> nnx.LayerNorm:
        """torch `LayerNorm`, with scale and bias unless `affine` is false; statistics in float32, in two passes."""
        return nnx.LayerNorm(
            channels,
            epsilon=eps,
            dtype=self.dtype,
            use_fast_variance=False,
            use_bias=affine,
            use_scale=affine,
            rngs=self.rngs,
        )

    def rms_norm(self, channels: int, eps: float) -> RMSNorm:
        """torch `RMSNorm`; statistics in float32."""
        return RMSNorm(channels, eps, self.dtype)

    def embed(self, entries: int, width: int) -> Embed:
        """torch `Embedding`."""
        return Embed(entries, width, self.rngs)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact (erf) GELU, torch's default; jax's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def sinusoidal_embedding(
    timesteps: Num[Array, " b"], width: int, flip_sin_to_cos: bool, freq_shift: float
) -> Float[Array, "b {width}"]:
    """Returns the float32 embedding of timesteps; diffusers `get_timestep_embedding`."""
    half = width // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    # By the host: a device's last bit of a frequency is a thousand times as much of an angle.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    first, second = (jnp.cos, jnp.sin) if flip_sin_to_cos else (jnp.sin, jnp.cos)
    return jnp.concatenate([first(angles), second(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers around a SiLU; diffusers `TimestepEmbedding`."""

    def __init__(self, inputs: int, outputs: int, layers: Layers, bias: bool = True):
        self.linear_1 = layers.linear(inputs, outputs, bias)
        self.linear_2 = layers.linear(outputs, outputs, bias)

    def __call__(self, x: Float[Array, "b inputs"]) -> Float[Array, "b outputs"]:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """GroupNorm-SiLU-conv twice, plus the skip; diffusers `ResnetBlock2D` (`models/resnet.py`).

    `time_embed_dim` None gives the VAE's block, which takes no timestep.
    """

    def __init__(self, inputs: int, outputs: int, time_embed_dim: int | None, groups: int, eps: float, layers: Layers):
        self.norm1 = layers.group_norm(inputs, groups, eps, silu=True)
        self.conv1 = layers.conv(inputs, outputs)
        self.time_emb_proj = layers.linear(time_embed_dim, outputs) if time_embed_dim else None
        self.norm2 = layers.group_norm(outputs, groups, eps, silu=True)
        self.conv2 = layers.conv(outputs, outputs)
        self.conv_shortcut = layers.conv(inputs, outputs, size=1) if inputs != outputs else None

    def __call__(
        self, x: Float[Array, "b h w c"], time_embedding: Float[Array, "b time_embed_dim"] | None = None
    ) -> Float[Array, "b h w c_out"]:
        hidden = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            assert time_embedding is not None
            hidden = add_broadcast(hidden, self.time_emb_proj(nnx.silu(time_embedding))[:, None, None, :])
        hidden = self.conv2(self.norm2(hidden))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
    """A stride-2 convolution. The UNet pads one pixel on every side, the VAE only below and to the right."""

    def __init__(self, channels: int, layers: Layers, asymmetric: bool = False):
        self.asymmetric = asymmetric
        self.conv = layers.conv(channels, channels, stride=2, padding=0 if asymmetric else 1)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_half w_half c"]:
        if self.asymmetric:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int, layers: Layers):
        self.conv = layers.conv(channels, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, c = x.shape
        doubled = broadcast(x[:, :, None, :, None, :], (b, h, 2, w, 2, c), x.dtype)
        return self.conv(doubled.reshape(b, 2 * h, 2 * w, c))
