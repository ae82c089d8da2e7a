"""CLIP's text tower (transformers `models/clip/modeling_clip.py`), without the `text_model.` prefix in its names."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxbooth.errors import UserError
from jaxbooth.models.attention import attention
from jaxbooth.models.config import CLIPTextConfig
from jaxbooth.models.layers import Make, gelu


def quick_gelu(x: Array) -> Array:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x)."""
    return x * nnx.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class CLIPAttention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int, make: Make):
        self.heads = heads
        self.q_proj = make.linear(width, width)
        self.k_proj = make.linear(width, width)
        self.v_proj = make.linear(width, width)
        self.out_proj = make.linear(width, width)

    def __call__(self, x: Array) -> Array:
        """Maps (b, s, width) to (b, s, width)."""
        q, k, v = (y.reshape(*y.shape[:-1], self.heads, -1) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return self.out_proj(attention(q, k, v, is_causal=True).reshape(x.shape))


class CLIPMLP(nnx.Module):
    """Two linear layers around the configuration's activation."""

    def __init__(self, config: CLIPTextConfig, make: Make):
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = make.linear(config.hidden_size, config.intermediate_size)
        self.fc2 = make.linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: CLIPTextConfig, make: Make):
        self.self_attn = CLIPAttention(config.hidden_size, config.num_attention_heads, make)
        self.layer_norm1 = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config, make)
        self.layer_norm2 = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array) -> Array:
        x += self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextEmbeddings(nnx.Module):
    """Token embedding plus learned positions."""

    def __init__(self, config: CLIPTextConfig, make: Make):
        self.token_embedding = make.embed(config.vocab_size, config.hidden_size)
        self.position_embedding = make.embed(config.max_position_embeddings, config.hidden_size)

    def __call__(self, input_ids: Array) -> Array:
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[-1]))


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig, make: Make):
        self.layers = nnx.List([CLIPEncoderLayer(config, make) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextModel(nnx.Module):
    """Token ids to text features.

    Raises:
        UserError: the configuration's activation is not one that CLIP text towers use.
    """

    def __init__(self, config: CLIPTextConfig, make: Make):
        if config.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"text_encoder/config.json: hidden_act {config.hidden_act!r} is not supported; "
                f"known are {', '.join(ACTIVATIONS)}."
            )
        self.embeddings = CLIPTextEmbeddings(config, make)
        self.encoder = CLIPEncoder(config, make)
        self.final_layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, input_ids: Array) -> Array:
        """Maps (b, s) token ids to the (b, s, hidden_size) last hidden state, after the final LayerNorm."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids)))
