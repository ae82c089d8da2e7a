"""Qwen3, the language model whose hidden states Z-Image and FLUX.2 klein are conditioned on.

Reference: transformers `models/qwen3/modeling_qwen3.py`. It is run once over prompts and never trained, and it never
generates text, so that there is no cache of keys and no `lm_head`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from jaxbooth.models.attention import attention
from jaxbooth.models.layers import Layers
from jaxbooth.models.qwen3_config import Qwen3Config
from jaxbooth.models.rope import Rotation, half_rotation, rope_angles, rotate_halves
from jaxbooth.params import Array

Tokens = Float[Array, "b s c"]
Lengths = Int[Array, " b"]


class Qwen3Attention(nnx.Module):
    """Causal self-attention of grouped heads, whose queries and keys are normalised head by head and then rotated."""

    def __init__(self, config: Qwen3Config, layers: Layers):
        width, bias = config.hidden_size, config.attention_bias
        query_width = config.num_attention_heads * config.head_dim
        key_value_width = config.key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = layers.linear(width, query_width, bias)
        self.k_proj = layers.linear(width, key_value_width, bias)
        self.v_proj = layers.linear(width, key_value_width, bias)
        self.o_proj = layers.linear(query_width, width, bias)
        self.q_norm = layers.rms_norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = layers.rms_norm(config.head_dim, config.rms_norm_eps)

    def __call__(self, x: Tokens, rotation: Rotation, lengths: Lengths) -> Tokens:
        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        query = rotate_halves(self.q_norm(split(self.q_proj(x))), rotation)
        key = rotate_halves(self.k_norm(split(self.k_proj(x))), rotation)
        out = attention(query, key, split(self.v_proj(x)), is_causal=True, lengths=lengths)
        return self.o_proj(out.reshape(*x.shape[:-1], -1))


class Qwen3MLP(nnx.Module):
    """A gated SiLU between two widths (SwiGLU)."""

    def __init__(self, config: Qwen3Config, layers: Layers):
        self.gate_proj = layers.linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = layers.linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = layers.linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: Tokens) -> Tokens:
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen3DecoderLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: Qwen3Config, layers: Layers):
        self.self_attn = Qwen3Attention(config, layers)
        self.mlp = Qwen3MLP(config, layers)
        self.input_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    @jax.jit  # all are alike: traced once
    def __call__(self, x: Tokens, rotation: Rotation, lengths: Lengths) -> Tokens:
        x += self.self_attn(self.input_layernorm(x), rotation, lengths)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Model(nnx.Module):
    """Token ids to hidden states; the residual stream is float32."""

    def __init__(self, config: Qwen3Config, layers: Layers):
        self.config = config
        self.embed_tokens = layers.embed(config.vocab_size, config.hidden_size)
        self.layers = nnx.List([Qwen3DecoderLayer(config, layers) for _ in range(config.num_hidden_layers)])
        exact = layers._replace(dtype=jnp.float32)
        self.norm = exact.rms_norm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, input_ids: Int[Array, "b s"], lengths: Lengths, layers: Sequence[int]) -> list[Tokens]:
        """Returns hidden states, float32; no layer is run that none of them needs.

        Args:
            lengths: tokens of each row that are not padding, which is at the end. Padding sees those tokens, too.
            layers: indices into transformers' `hidden_states`, also from the end: 0 is the embeddings, i < N the output
                of layer i, and N, of N layers, the final norm of the last one's.
        """
        depth = len(self.layers)
        wanted = [range(depth + 1)[index] for index in layers]
        positions = np.arange(input_ids.shape[1])[:, None]
        # transformers computes angles in float32
        angles = rope_angles(positions, [self.config.head_dim], self.config.rope_base, np.float32)
        rotation = half_rotation(angles)
        states = [self.embed_tokens(input_ids)]
        for layer in self.layers[: max(wanted)]:
            states.append(layer(states[-1], rotation, lengths))
        return [self.norm(states[index]) if index == depth else states[index] for index in wanted]
