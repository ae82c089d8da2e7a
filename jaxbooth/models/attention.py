"""Attention as one function, and the transformer blocks of the UNet (diffusers `models/attention.py`)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxbooth.models.layers import Make, gelu

LONG_SEQUENCE = 4096  # from here the full score matrix costs more than a GiB a layer
QUERY_CHUNK = 512


def attention(query: Array, key: Array, value: Array, is_causal: bool = False) -> Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32.

    Args:
        query: (batch, length, heads, head_dim).
        key: (batch, source_length, heads, head_dim); `value` has the same shape.
        is_causal: position i sees positions <= i only.

    Returns:
        (batch, length, heads, head_dim) in the dtype of `query`.
    """
    if query.shape[1] >= LONG_SEQUENCE and key.shape[1] >= LONG_SEQUENCE and not is_causal:
        chunk = next(size for size in range(QUERY_CHUNK, 0, -1) if query.shape[1] % size == 0)
        return query_chunked_attention(query, key, value, chunk)
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)


def query_chunked_attention(query: Array, key: Array, value: Array, chunk: int) -> Array:
    """`attention` over `chunk` query rows at a time; the backward pass recomputes each chunk's scores.

    Memory grows with chunk x source_length and not with length x source_length.

    Raises:
        ValueError: `chunk` does not divide the query length.
    """
    batch, length, heads, width = query.shape
    if length % chunk:
        raise ValueError(f"query length {length} is not a multiple of the chunk {chunk}")
    chunks = jnp.moveaxis(query.reshape(batch, length // chunk, chunk, heads, width), 1, 0)
    one = jax.checkpoint(functools.partial(jax.nn.dot_product_attention, key=key, value=value))
    return jnp.moveaxis(jax.lax.map(one, chunks), 0, 1).reshape(query.shape)


class Projections(nnx.Module):
    """Query, key, value and output projections around `attention`; biases on the first three only if asked."""

    def __init__(self, width: int, heads: int, make: Make, context_width: int | None = None, bias: bool = False):
        self.heads = heads
        self.to_q = make.linear(width, width, bias)
        self.to_k = make.linear(context_width or width, width, bias)
        self.to_v = make.linear(context_width or width, width, bias)
        self.to_out = nnx.List([make.linear(width, width)])

    def attend(self, x: Array, context: Array) -> Array:
        """Maps (b, t, width) and (b, s, context_width) to (b, t, width)."""

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        out = attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](out.reshape(x.shape))


class Attention(Projections):
    """Multi-head attention; self-attention unless a context is given."""

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Maps (b, t, width) and an optional (b, s, context_width) to (b, t, width)."""
        return self.attend(x, x if context is None else context)


class GEGLU(nnx.Module):
    """A gated GELU: half of the projection gates the other half."""

    def __init__(self, width: int, inner: int, make: Make):
        self.proj = make.linear(width, 2 * inner)

    def __call__(self, x: Array) -> Array:
        hidden, gate = jnp.split(self.proj(x), 2, axis=-1)
        return hidden * gelu(gate)


class Identity(nnx.Module):
    """Holds a place in a list: `ff.net` has parameters at 0 and 2 only (1 is torch's dropout)."""

    def __call__(self, x: Array) -> Array:
        return x


class FeedForward(nnx.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, width: int, make: Make):
        self.net = nnx.List([GEGLU(width, 4 * width, make), Identity(), make.linear(4 * width, width)])

    def __call__(self, x: Array) -> Array:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each after a LayerNorm and with a skip."""

    def __init__(self, width: int, heads: int, context_width: int, make: Make):
        self.norm1 = make.layer_norm(width)
        self.attn1 = Attention(width, heads, make)
        self.norm2 = make.layer_norm(width)
        self.attn2 = Attention(width, heads, make, context_width)
        self.norm3 = make.layer_norm(width)
        self.ff = FeedForward(width, make)

    def __call__(self, x: Array, context: Array) -> Array:
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a skip around all of them.

    `linear` chooses between SD 1.x's 1x1 convolutions and SD 2.x's and XL's linear layers in `proj_in` and `proj_out`.
    """

    def __init__(self, width: int, heads: int, layers: int, context_width: int, groups: int, linear: bool, make: Make):
        self.norm = make.group_norm(width, groups, eps=1e-6)
        self.proj_in = make.linear(width, width) if linear else make.conv(width, width, size=1)
        blocks = [BasicTransformerBlock(width, heads, context_width, make) for _ in range(layers)]
        self.transformer_blocks = nnx.List(blocks)
        self.proj_out = make.linear(width, width) if linear else make.conv(width, width, size=1)

    def __call__(self, x: Array, context: Array) -> Array:
        """Maps (b, h, w, width) and (b, s, context_width) to (b, h, w, width)."""
        # A 1x1 convolution and a linear layer over the last axis are the same map, so both run before the reshape.
        hidden = self.proj_in(self.norm(x))
        hidden = hidden.reshape(x.shape[0], -1, x.shape[-1])
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        return x + self.proj_out(hidden.reshape(x.shape))
