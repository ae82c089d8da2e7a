"""The blocks of FLUX.2's transformer: in double blocks image and text have weights of their own, in single ones not."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.attention import Tokens, attention, gated
from jaxbooth.models.attention_kernels import Queries, Sources
from jaxbooth.models.flux2_config import Flux2Config
from jaxbooth.models.fused import project_from_parts, project_to_parts
from jaxbooth.models.layers import Layers, TimestepEmbedding, sinusoidal_embedding
from jaxbooth.models.norms import RMSNorm
from jaxbooth.models.rope import Rotation, rotate_neighbours
from jaxbooth.params import Array

TextTokens = Float[Array, "b s c"]
Embedding = Float[Array, "b c"]  # of the timestep
Channels = Float[Array, "b c"]  # of each row, float32


class TimestepEmbedder(nnx.Module):
    """Sinusoids and two linear layers; float32, as it is computed once for all tokens."""

    def __init__(self, config: Flux2Config, layers: Layers):
        self.sinusoids = config.timestep_guidance_channels
        exact = layers._replace(dtype=jnp.float32)
        self.timestep_embedder = TimestepEmbedding(self.sinusoids, config.width, exact, bias=False)

    def __call__(self, timesteps: Float[Array, " b"]) -> Embedding:
        return self.timestep_embedder(
            sinusoidal_embedding(timesteps, self.sinusoids, flip_sin_to_cos=True, freq_shift=0)
        )


class Modulation(NamedTuple):
    """How the timestep changes a part of a block: its normalised input, and what is added to the stream."""

    shift: Channels
    scale: Channels
    gate: Channels


class ModulationLayer(nnx.Module):
    """The modulations of `count` parts of a block, which all blocks of one kind share."""

    def __init__(self, config: Flux2Config, count: int, layers: Layers):
        self.count = count
        self.linear = layers.linear(config.width, 3 * count * config.width, bias=False)

    def __call__(self, embedding: Embedding) -> tuple[Modulation, ...]:
        values = self.linear(nnx.silu(embedding)).astype(jnp.float32)
        parts = jnp.split(values, 3 * self.count, axis=-1)
        return tuple(Modulation(*parts[3 * index : 3 * index + 3]) for index in range(self.count))


def modulated_norm(x: Tokens, shift: Channels, scale: Channels, eps: float) -> Tokens:
    """Returns LayerNorm(x) (1 + scale) + shift, in float32 inside. In bfloat16 the backward pass keeps `x` alone."""

    def normalised(x: Array, shift: Array, scale: Array) -> Array:
        values = x.astype(jnp.float32)
        centred = values - jnp.mean(values, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + eps)
        return (y * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)

    return (jax.checkpoint(normalised) if x.dtype == jnp.bfloat16 else normalised)(x, shift, scale)


def add_gated(x: Tokens, gate: Channels, y: Tokens) -> Tokens:
    """Returns x + gate y, rounded once to the dtype of `x`; the gradient of the gate is summed in float32."""
    return (x.astype(jnp.float32) + gate[:, None] * y.astype(jnp.float32)).astype(x.dtype)


class FeedForward(nnx.Module):
    """SwiGLU: the first half of a projection gates the other half by SiLU, and another projection leads back."""

    def __init__(self, config: Flux2Config, layers: Layers):
        self.inner = config.mlp_width
        self.linear_in = layers.linear(config.width, 2 * self.inner, bias=False)
        self.linear_out = layers.linear(self.inner, config.width, bias=False)

    def __call__(self, x: Tokens) -> Tokens:
        gate, hidden = project_to_parts(self.linear_in, x, (self.inner, self.inner))
        return self.linear_out(gated(hidden, gate, nnx.silu))


def split_heads(x: Tokens, heads: int) -> Queries:
    """Cuts the channels into heads."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend(query: Queries, key: Queries, value: Queries, rotation: Rotation) -> Tokens:
    """Returns attention with rotary positions, heads side by side."""
    out = attention(rotate_neighbours(query, rotation), rotate_neighbours(key, rotation), value)
    return out.reshape(*out.shape[:2], -1)


class JointAttention(nnx.Module):
    """Attention of text and image to both, with projections for each; `Flux2Attention`."""

    def __init__(self, config: Flux2Config, layers: Layers):
        width, norm = config.width, functools.partial(layers.rms_norm, config.attention_head_dim, config.eps)
        linear = functools.partial(layers.linear, width, width, bias=False)
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.norm_q, self.norm_k = norm(), norm()
        self.to_out = nnx.List([linear()])
        self.add_q_proj, self.add_k_proj, self.add_v_proj = linear(), linear(), linear()
        self.norm_added_q, self.norm_added_k = norm(), norm()
        self.to_add_out = linear()

    def __call__(self, image: Tokens, text: TextTokens, rotation: Rotation) -> tuple[Tokens, TextTokens]:
        """Returns what image and text gather; positions of the text come first in `rotation`."""

        def heads(projection: Any, x: Tokens, norm: RMSNorm | None = None) -> Queries:
            projected = split_heads(projection(x), self.heads)
            return projected if norm is None else norm(projected)

        def both(of_text: Sources, of_image: Queries) -> Array:
            return jnp.concatenate([of_text, of_image], axis=1)

        query = both(heads(self.add_q_proj, text, self.norm_added_q), heads(self.to_q, image, self.norm_q))
        key = both(heads(self.add_k_proj, text, self.norm_added_k), heads(self.to_k, image, self.norm_k))
        value = both(heads(self.add_v_proj, text), heads(self.to_v, image))
        out = attend(query, key, value, rotation)
        return self.to_out[0](out[:, text.shape[1] :]), self.to_add_out(out[:, : text.shape[1]])


class Flux2TransformerBlock(nnx.Module):
    """Joint attention, then a feed-forward network for each of image and text."""

    def __init__(self, config: Flux2Config, layers: Layers):
        self.eps = config.eps
        self.attn = JointAttention(config, layers)
        self.ff = FeedForward(config, layers)
        self.ff_context = FeedForward(config, layers)

    def __call__(
        self,
        image: Tokens,
        text: TextTokens,
        rotation: Rotation,
        of_image: tuple[Modulation, Modulation],
        of_text: tuple[Modulation, Modulation],
    ) -> tuple[Tokens, TextTokens]:
        """Returns both streams.

        Args:
            of_image, of_text: modulations of attention and of the feed-forward network.
        """
        from_image, from_text = self.attn(
            modulated_norm(image, of_image[0].shift, of_image[0].scale, self.eps),
            modulated_norm(text, of_text[0].shift, of_text[0].scale, self.eps),
            rotation,
        )
        image = add_gated(image, of_image[0].gate, from_image)
        text = add_gated(text, of_text[0].gate, from_text)
        return self.feed(self.ff, image, of_image[1]), self.feed(self.ff_context, text, of_text[1])

    def feed(self, network: FeedForward, x: Tokens, modulation: Modulation) -> Tokens:
        """Adds what a feed-forward network makes of a stream."""
        return add_gated(x, modulation.gate, network(modulated_norm(x, modulation.shift, modulation.scale, self.eps)))


class ParallelAttention(nnx.Module):
    """Self-attention and a feed-forward network beside each other, in one projection in and one out.

    Reference: `Flux2ParallelSelfAttention`.
    """

    def __init__(self, config: Flux2Config, layers: Layers):
        width, inner = config.width, config.mlp_width
        self.heads = config.num_attention_heads
        self.parts = (width, width, width, inner, inner)  # query, key, value, gate, hidden
        self.to_qkv_mlp_proj = layers.linear(width, sum(self.parts), bias=False)
        self.norm_q = layers.rms_norm(config.attention_head_dim, config.eps)
        self.norm_k = layers.rms_norm(config.attention_head_dim, config.eps)
        self.to_out = layers.linear(width + inner, width, bias=False)

    def __call__(self, x: Tokens, rotation: Rotation) -> Tokens:
        *projected, gate, hidden = project_to_parts(self.to_qkv_mlp_proj, x, self.parts)
        query, key, value = (split_heads(part, self.heads) for part in projected)
        attended = attend(self.norm_q(query), self.norm_k(key), value, rotation)
        return project_from_parts(self.to_out, [attended, gated(hidden, gate, nnx.silu)])


class Flux2SingleTransformerBlock(nnx.Module):
    """Attention and feed-forward network over image and text as one stream."""

    def __init__(self, config: Flux2Config, layers: Layers):
        self.eps = config.eps
        self.attn = ParallelAttention(config, layers)

    def __call__(self, x: Tokens, rotation: Rotation, modulation: Modulation) -> Tokens:
        normalised = modulated_norm(x, modulation.shift, modulation.scale, self.eps)
        return add_gated(x, modulation.gate, self.attn(normalised, rotation))


class FinalNorm(nnx.Module):
    """The LayerNorm before the last projection, which the timestep modulates; `AdaLayerNormContinuous`."""

    def __init__(self, config: Flux2Config, layers: Layers):
        self.eps = config.eps
        self.linear = layers.linear(config.width, 2 * config.width, bias=False)

    def __call__(self, x: Tokens, embedding: Embedding) -> Tokens:
        scale, shift = jnp.split(self.linear(nnx.silu(embedding)).astype(jnp.float32), 2, axis=-1)
        return modulated_norm(x, shift, scale, self.eps)
