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
LEGACY_EOS = 2  # transformers `modeling_clip.py` tells the same two cases apart


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

    def __call__(self, x: Array) -> list[Array]:
        """Returns the input and the output of every layer: transformers' `hidden_states`."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class CLIPTextModel(nnx.Module):
    """Token ids to text features.

    `projection` adds the pooled embedding's linear map, as `CLIPTextModelWithProjection` has it.

    Raises:
        UserError: the configuration's activation is not one that CLIP text towers use.
    """

    def __init__(self, config: CLIPTextConfig, make: Make, projection: bool = False):
        if config.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"a text encoder's config.json: hidden_act {config.hidden_act!r} is not supported; "
                f"known are {', '.join(ACTIVATIONS)}."
            )
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config, make)
        self.encoder = CLIPEncoder(config, make)
        self.final_layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.text_projection = (
            make.linear(config.hidden_size, config.projection_dim, bias=False) if projection else None
        )

    def __call__(self, input_ids: Array) -> list[Array]:
        """Maps (b, s) token ids to every hidden state, embeddings first; each (b, s, hidden_size)."""
        return self.encoder(self.embeddings(input_ids))

    def pooled(self, last: Array, input_ids: Array) -> Array:
        """Maps the last hidden state (b, s, hidden_size) to the projected feature at its end, (b, projection_dim).

        Old configurations name 2 as the end token and mean the highest id; ids beyond the vocabulary are learned ones.
        """
        assert self.text_projection is not None, "this text encoder has no projection"
        known = jnp.where(input_ids < self.config.vocab_size, input_ids, -1)
        is_end = known == self.config.eos_token_id
        end = jnp.argmax(known if self.config.eos_token_id == LEGACY_EOS else is_end, axis=-1)
        return self.text_projection(self.final_layer_norm(last)[jnp.arange(len(last)), end])
