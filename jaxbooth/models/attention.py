"""Attention as one function, and the transformer blocks of the UNet (diffusers `models/attention.py`)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.adapter_kinds import TAKING_IN
from jaxbooth.models.attention_kernels import (
    KERNELS,
    PLATFORM_KERNELS,
    KernelName,
    Lengths,
    Queries,
    Sources,
    cudnn_widest,
    xla_attention,
)
from jaxbooth.models.layers import Layers, gelu
from jaxbooth.models.lora import LoraLayer
from jaxbooth.params import Array
from jaxbooth.sharding import shard_map_heads

Tokens = Float[Array, "b t c"]
Context = Float[Array, "b s c_context"]
LONG_SEQUENCE = 2048  # XLA keeps the scores of 1024 tokens on a TPU's chip; those of 2304 cost 600 MiB a layer
CUDNN_SCORES = 2**16  # of a head, from which on cuDNN is faster on an H200, see docs/speed.md; cross-attention's too


def attention(
    query: Queries, key: Sources, value: Sources, is_causal: bool = False, lengths: Lengths | None = None
) -> Queries:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32, by the kernel that suits the compiled platform.

    Args:
        key, value: may have fewer heads than `query`, each for as many neighbours (grouped-query attention).
        is_causal: position i sees positions <= i only.
        lengths: keys of each row that are seen, 1 or more; those after them are padding. None: all.

    Returns:
        The dtype is that of `query`. Rows of queries in the padding hold finite values.
    """
    problem = (query.shape[1], key.shape[1], query.shape[3], query.dtype, is_causal)
    kernels = {}
    for platform in ("tpu", "cuda"):
        name = select_kernel(platform, *problem)
        if name in PLATFORM_KERNELS and PLATFORM_KERNELS[name]():
            kernels[platform] = KERNELS[name]
    elsewhere = select_kernel("cpu", *problem)
    if elsewhere == "xla" and not kernels:
        return xla_attention(query, key, value, lengths, is_causal)
    # All branches together decide what is kept for the backward pass, so that the xla kernel's scores must not be.
    default = jax.checkpoint(xla_attention) if elsewhere == "xla" else KERNELS[elsewhere]
    choose = functools.partial(jax.lax.platform_dependent, default=default, **kernels)
    return shard_map_heads(choose, query, key, value, *(() if lengths is None else (lengths,)))


def select_kernel(
    platform: str, length: int, source_length: int, width: int, dtype: jax.typing.DTypeLike, is_causal: bool = False
) -> KernelName:
    """Returns the kernel that `attention` takes on a platform (`tpu`, `cuda` or another).

    Text is short and alone causal, and takes the xla kernel; so does cross-attention, whose source is text, except
    with cuDNN. The kernels round their products to bfloat16, so float32 (the VAE, or `--train.dtype float32`) is never
    theirs.
    """
    if is_causal:
        return "xla"
    is_worth_it = dtype == jnp.bfloat16 and length * source_length >= CUDNN_SCORES
    if platform == "cuda" and is_worth_it and width % 8 == 0 and width <= cudnn_widest():
        return "cudnn"
    if min(length, source_length) < LONG_SEQUENCE:
        return "xla"
    return "splash" if platform == "tpu" and dtype == jnp.bfloat16 else "chunked"


class Projections(nnx.Module):
    """Query, key, value and output projections around `attention`; biases on the first three only if asked."""

    def __init__(self, width: int, heads: int, layers: Layers, context_width: int | None = None, bias: bool = False):
        self.heads = heads
        self.to_q = layers.linear(width, width, bias)
        self.to_k = layers.linear(context_width or width, width, bias)
        self.to_v = layers.linear(context_width or width, width, bias)
        self.to_out = nnx.List([layers.linear(width, width)])

    def attend(self, x: Tokens, context: Context) -> Tokens:
        """Returns what each of `x` gathers from the context."""

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        out = attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](out.reshape(x.shape))


class Attention(Projections):
    """Multi-head attention; self-attention unless a context is given."""

    def __call__(self, x: Tokens, context: Context | None = None) -> Tokens:
        return self.attend(x, x if context is None else context)


class GEGLU(nnx.Module):
    """A gated GELU: half of the projection gates the other half."""

    def __init__(self, width: int, inner: int, layers: Layers):
        self.inner = inner
        self.proj = layers.linear(width, 2 * inner)

    def half(self, index: int) -> Any:
        """Returns the projection to one half of its outputs.

        Halving the parameters and not the product lets devices share the work evenly: a device that has some columns
        of the product has either hidden values or gates, and would have to send for the others.
        """

        def cut(path: tuple, value: Array) -> Array:
            names = {getattr(key, "name", "") for key in path}
            is_output = value.shape[-1] == 2 * self.inner and not names & TAKING_IN
            return jnp.split(value, 2, axis=-1)[index] if is_output else value

        half = jax.tree_util.tree_map_with_path(cut, self.proj)
        if isinstance(half, LoraLayer):
            half.half = index  # LoKr's factors span all outputs
        return half

    def __call__(self, x: Tokens) -> Float[Array, "b t inner"]:
        return gated(self.half(0)(x), self.half(1)(x))


def gated(
    hidden: Float[Array, "*shape"], gate: Float[Array, "*shape"], activation: Callable[[Array], Array] = gelu
) -> Float[Array, "*shape"]:
    """hidden x activation(gate). In bfloat16 the backward pass keeps these two, and not what it makes of them besides.

    In float32, which is for a CPU, it stays as it is: the compiler there keeps everything anyway.
    """

    def product(hidden: Array, gate: Array) -> Array:
        return hidden * activation(gate)

    return (jax.checkpoint(product) if gate.dtype == jnp.bfloat16 else product)(hidden, gate)


class Identity(nnx.Module):
    """Holds a place in a list: `ff.net` has parameters at 0 and 2 only (1 is torch's dropout)."""

    def __call__(self, x: Array) -> Array:
        return x


class FeedForward(nnx.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, width: int, layers: Layers):
        self.net = nnx.List([GEGLU(width, 4 * width, layers), Identity(), layers.linear(4 * width, width)])

    def __call__(self, x: Tokens) -> Tokens:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each after a LayerNorm and with a skip."""

    def __init__(self, width: int, heads: int, context_width: int, layers: Layers):
        self.norm1 = layers.layer_norm(width)
        self.attn1 = Attention(width, heads, layers)
        self.norm2 = layers.layer_norm(width)
        self.attn2 = Attention(width, heads, layers, context_width)
        self.norm3 = layers.layer_norm(width)
        self.ff = FeedForward(width, layers)

    @jax.jit  # many are alike: traced once
    def __call__(self, x: Tokens, context: Context) -> Tokens:
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a skip around all of them.

    `linear` chooses between SD 1.x's 1x1 convolutions and SD 2.x's and XL's linear layers in `proj_in` and `proj_out`.
    """

    def __init__(
        self, width: int, heads: int, depth: int, context_width: int, groups: int, linear: bool, layers: Layers
    ):
        self.norm = layers.group_norm(width, groups, eps=1e-6)
        self.proj_in = layers.linear(width, width) if linear else layers.conv(width, width, size=1)
        blocks = [BasicTransformerBlock(width, heads, context_width, layers) for _ in range(depth)]
        self.transformer_blocks = nnx.List(blocks)
        self.proj_out = layers.linear(width, width) if linear else layers.conv(width, width, size=1)

    def __call__(self, x: Float[Array, "b h w c"], context: Context) -> Float[Array, "b h w c"]:
        # A 1x1 convolution and a linear layer over the last axis are the same map, so both run before the reshape.
        hidden = self.proj_in(self.norm(x))
        hidden = hidden.reshape(x.shape[0], -1, x.shape[-1])
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        return x + self.proj_out(hidden.reshape(x.shape))
