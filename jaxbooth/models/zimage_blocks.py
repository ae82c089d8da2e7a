"""The blocks of Z-Image's transformer, and what else the timestep modulates."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.attention import Identity, Tokens, attention, gated
from jaxbooth.models.attention_kernels import Lengths
from jaxbooth.models.broadcast import broadcast
from jaxbooth.models.layers import Layers, sinusoidal_embedding
from jaxbooth.models.norms import RMSNorm
from jaxbooth.models.rope import Rotation, rotate_neighbours
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.params import Array

FREQUENCY_WIDTH, TIMESTEP_WIDTH = 256, 1024
QK_NORM_EPS = 1e-5  # whatever `norm_eps` says

Embedding = Float[Array, "b modulation_width"]  # of the timestep
Factors = Float[Array, "b c"]


class TimestepEmbedder(nnx.Module):
    """Sinusoids, two linear layers and a SiLU; float32, as it is computed once for all tokens."""

    def __init__(self, config: ZImageConfig, layers: Layers):
        exact = layers._replace(dtype=jnp.float32)
        first = exact.linear(FREQUENCY_WIDTH, TIMESTEP_WIDTH)
        self.mlp = nnx.List([first, Identity(), exact.linear(TIMESTEP_WIDTH, config.modulation_width)])

    def __call__(self, times: Float[Array, " b"]) -> Embedding:
        sinusoids = sinusoidal_embedding(times, FREQUENCY_WIDTH, flip_sin_to_cos=True, freq_shift=0)
        return self.mlp[2](nnx.silu(self.mlp[0](sinusoids)))


class JointAttention(nnx.Module):
    """Self-attention with RMSNorm and rotary positions on queries and keys."""

    def __init__(self, config: ZImageConfig, layers: Layers):
        inner = config.n_heads * config.head_width
        self.heads = config.n_heads
        self.to_q = layers.linear(config.dim, inner, bias=False)
        self.to_k = layers.linear(config.dim, inner, bias=False)
        self.to_v = layers.linear(config.dim, inner, bias=False)
        self.norm_q = layers.rms_norm(config.head_width, QK_NORM_EPS) if config.qk_norm else None
        self.norm_k = layers.rms_norm(config.head_width, QK_NORM_EPS) if config.qk_norm else None
        self.to_out = nnx.List([layers.linear(inner, config.dim, bias=False)])

    def __call__(self, x: Tokens, rotation: Rotation, lengths: Lengths | None) -> Tokens:
        query, key, value = (
            y.reshape(*y.shape[:-1], self.heads, -1) for y in (self.to_q(x), self.to_k(x), self.to_v(x))
        )
        if self.norm_q is not None and self.norm_k is not None:
            query, key = self.norm_q(query), self.norm_k(key)
        query, key = rotate_neighbours(query, rotation), rotate_neighbours(key, rotation)
        out = attention(query, key, value, lengths=lengths)
        return self.to_out[0](out.reshape(*x.shape[:-1], -1))


class SwiGLU(nnx.Module):
    """Two projections, one of which gates the other by SiLU, and a third one back."""

    def __init__(self, config: ZImageConfig, layers: Layers):
        inner = int(config.dim / 3 * 8)
        self.w1 = layers.linear(config.dim, inner, bias=False)
        self.w2 = layers.linear(inner, config.dim, bias=False)
        self.w3 = layers.linear(config.dim, inner, bias=False)

    def __call__(self, x: Tokens) -> Tokens:
        return self.w2(gated(self.w3(x), self.w1(x), nnx.silu))


class ZImageTransformerBlock(nnx.Module):
    """Self-attention and feed-forward between RMSNorms.

    Args:
        modulation: the timestep scales what goes in and, by tanh, what comes out. Captions are refined without.
    """

    def __init__(self, config: ZImageConfig, layers: Layers, modulation: bool = True):
        dim, eps = config.dim, config.norm_eps
        self.attention = JointAttention(config, layers)
        self.feed_forward = SwiGLU(config, layers)
        self.attention_norm1 = layers.rms_norm(dim, eps)
        self.ffn_norm1 = layers.rms_norm(dim, eps)
        self.attention_norm2 = layers.rms_norm(dim, eps)
        self.ffn_norm2 = layers.rms_norm(dim, eps)
        self.adaLN_modulation = nnx.List([layers.linear(config.modulation_width, 4 * dim)]) if modulation else None

    def __call__(
        self, x: Tokens, rotation: Rotation, lengths: Lengths | None, embedding: Embedding | None = None
    ) -> Tokens:
        factors: list[Array | None] = [None] * 4
        if self.adaLN_modulation is not None and embedding is not None:
            values = self.adaLN_modulation[0](embedding).astype(jnp.float32)
            scale_attention, gate_attention, scale_ffn, gate_ffn = jnp.split(values, 4, axis=-1)
            factors = [1 + scale_attention, jnp.tanh(gate_attention), 1 + scale_ffn, jnp.tanh(gate_ffn)]
        hidden = self.attention(scaled_norm(self.attention_norm1, x, factors[0]), rotation, lengths)
        x = x + scaled_norm(self.attention_norm2, hidden, factors[1])
        hidden = self.feed_forward(scaled_norm(self.ffn_norm1, x, factors[2]))
        return x + scaled_norm(self.ffn_norm2, hidden, factors[3])


def scaled_norm(norm: RMSNorm, x: Tokens, factors: Factors | None) -> Tokens:
    """Returns the norm of `x`, times the factors of each row. In bfloat16 the backward pass keeps `x` alone."""
    if factors is None:
        return norm(x)

    def product(norm: RMSNorm, x: Array, factors: Array) -> Array:
        y = norm(x)
        return y * broadcast(factors[:, None], y.shape, y.dtype)

    return (jax.checkpoint(product) if x.dtype == jnp.bfloat16 else product)(norm, x, factors)


class FinalLayer(nnx.Module):
    """A LayerNorm that the timestep scales, and the projection to patches."""

    def __init__(self, config: ZImageConfig, outputs: int, layers: Layers):
        self.norm_final = layers.layer_norm(config.dim, eps=1e-6, affine=False)
        self.linear = layers.linear(config.dim, outputs)
        self.adaLN_modulation = nnx.List([Identity(), layers.linear(config.modulation_width, config.dim)])

    def __call__(self, x: Tokens, embedding: Embedding) -> Float[Array, "b t c_out"]:
        factors = 1 + self.adaLN_modulation[1](nnx.silu(embedding)).astype(jnp.float32)
        hidden = self.norm_final(x)
        return self.linear(hidden * broadcast(factors[:, None], hidden.shape, hidden.dtype))
