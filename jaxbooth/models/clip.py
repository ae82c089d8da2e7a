"""CLIP's encoder and its text tower (transformers `models/clip/modeling_clip.py`).

A text tower on its own has no `text_model.` prefix in its names.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from jaxbooth.models.broadcast import add_broadcast
from jaxbooth.models.config import CLIPTextConfig, CLIPVisionConfig
from jaxbooth.models.encoder import MLP, SelfAttention, check_activation
from jaxbooth.models.layers import Layers
from jaxbooth.params import Array

CLIPEncoderConfig = CLIPTextConfig | CLIPVisionConfig
TokenIds = Int[Array, "b s"]
LEGACY_EOS = 2  # transformers `modeling_clip.py` tells the same two cases apart


class CLIPEncoderLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: CLIPEncoderConfig, layers: Layers, is_causal: bool):
        width = config.hidden_size
        self.self_attn = SelfAttention(width, config.num_attention_heads, layers, is_causal)
        self.layer_norm1 = layers.layer_norm(width, config.layer_norm_eps)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, layers)
        self.layer_norm2 = layers.layer_norm(width, config.layer_norm_eps)

    @jax.jit  # all are alike: traced once
    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        x += self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextEmbeddings(nnx.Module):
    """Token embedding plus learned positions."""

    def __init__(self, config: CLIPTextConfig, layers: Layers):
        self.token_embedding = layers.embed(config.vocab_size, config.hidden_size)
        self.position_embedding = layers.embed(config.max_position_embeddings, config.hidden_size)

    def __call__(self, input_ids: TokenIds, learned: Float[Array, "entries c"] | None) -> Float[Array, "b s c"]:
        positions = self.position_embedding(jnp.arange(input_ids.shape[-1]))
        return add_broadcast(self.tokens(input_ids, learned), positions)

    def tokens(self, input_ids: TokenIds, learned: Float[Array, "entries c"] | None) -> Float[Array, "b s c"]:
        """Looks ids up in the table, and those that follow it among the learned ones."""
        if learned is None:
            return self.token_embedding(input_ids)
        number = input_ids - self.token_embedding.embedding.shape[0]
        known = self.token_embedding(jnp.where(number < 0, input_ids, 0))
        return jnp.where((number < 0)[..., None], known, learned[jnp.maximum(number, 0)])


class CLIPEncoder(nnx.Module):
    """The stack of layers; only text is causal."""

    def __init__(self, config: CLIPEncoderConfig, layers: Layers, is_causal: bool):
        self.layers = nnx.List([CLIPEncoderLayer(config, layers, is_causal) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Float[Array, "b s c"]) -> list[Float[Array, "b s c"]]:
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

    def __init__(self, config: CLIPTextConfig, layers: Layers, projection: bool = False):
        check_activation(config.hidden_act, "a text encoder")
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config, layers)
        self.encoder = CLIPEncoder(config, layers, is_causal=True)
        exact = layers._replace(dtype=jnp.float32)
        self.final_layer_norm = exact.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.text_projection = (
            layers.linear(config.hidden_size, config.projection_dim, bias=False) if projection else None
        )

    def __call__(
        self, input_ids: TokenIds, learned: Float[Array, "entries c"] | None = None
    ) -> list[Float[Array, "b s c"]]:
        """Returns every hidden state, embeddings first; float32.

        Args:
            learned: embeddings of the ids that follow the vocabulary.
        """
        return self.encoder(self.embeddings(input_ids, learned))

    def at_end(self, last: Float[Array, "b s c"], input_ids: TokenIds) -> Float[Array, "b c"]:
        """Returns the normalised last hidden state of each end token.

        Old configurations name 2 as the end token and mean the highest id; ids beyond the vocabulary are learned ones.
        """
        known = jnp.where(input_ids < self.config.vocab_size, input_ids, -1)
        is_end = known == self.config.eos_token_id
        end = jnp.argmax(known if self.config.eos_token_id == LEGACY_EOS else is_end, axis=-1)
        return self.final_layer_norm(last)[jnp.arange(len(last)), end]

    def pooled(self, last: Float[Array, "b s c"], input_ids: TokenIds) -> Float[Array, "b projection_dim"]:
        """Returns the projected last hidden state of each end token."""
        assert self.text_projection is not None, "this text encoder has no projection"
        return self.text_projection(self.at_end(last, input_ids)).astype(jnp.float32)
