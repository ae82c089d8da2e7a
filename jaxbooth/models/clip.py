"""CLIP: the layers that its encoders share, its text encoder, and both encoders as one model.

A text encoder on its own has no `text_model.` prefix in its names. Reference: transformers
`models/clip/modeling_clip.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from jaxbooth.errors import UserError
from jaxbooth.models.attention import attention
from jaxbooth.models.broadcast import add_broadcast, broadcast
from jaxbooth.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from jaxbooth.models.layers import Layers, gelu
from jaxbooth.params import Array


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x)."""
    return x * nnx.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


def check_activation(name: str, encoder: str) -> None:
    """Refuses an activation that is not in ACTIVATIONS.

    Args:
        encoder: what has it, for the message.

    Raises:
        UserError: it is another one.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{encoder}'s config.json: hidden_act {name!r} is not supported; known are {known}.")


class SelfAttention(nnx.Module):
    """Multi-head self-attention; `bias` is that of query, key and value."""

    def __init__(self, width: int, heads: int, layers: Layers, is_causal: bool = False, bias: bool = True):
        self.heads, self.is_causal = heads, is_causal
        self.q_proj = layers.linear(width, width, bias)
        self.k_proj = layers.linear(width, width, bias)
        self.v_proj = layers.linear(width, width, bias)
        self.out_proj = layers.linear(width, width)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        q, k, v = (y.reshape(*y.shape[:-1], self.heads, -1) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return self.out_proj(attention(q, k, v, self.is_causal).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers around one of ACTIVATIONS."""

    def __init__(self, width: int, inner: int, activation: str, layers: Layers):
        self.activation = ACTIVATIONS[activation]
        self.fc1 = layers.linear(width, inner)
        self.fc2 = layers.linear(inner, width)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        return self.fc2(self.activation(self.fc1(x)))


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
        UserError: the configuration's activation is not one that CLIP text encoders use.
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


class CLIPVisionEmbeddings(nnx.Module):
    """Patches after a class token, with learned positions."""

    def __init__(self, config: CLIPVisionConfig, layers: Layers):
        entries = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nnx.Param(jnp.zeros(config.hidden_size))
        self.patch_embedding = layers.patches(config.num_channels, config.hidden_size, config.patch_size, bias=False)
        self.position_embedding = layers.embed(entries, config.hidden_size)

    def __call__(self, pixels: Float[Array, "b h w channels"]) -> Float[Array, "b s c"]:
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(len(patches), -1, patches.shape[-1])
        token = broadcast(self.class_embedding[...], (len(patches), 1, patches.shape[-1]), patches.dtype)
        tokens = jnp.concatenate([token, patches], axis=1)
        return add_broadcast(tokens, self.position_embedding(jnp.arange(tokens.shape[1])))


class CLIPVisionModel(nnx.Module):
    """Pixels to the class token's feature.

    Raises:
        UserError: the configuration's activation is not supported.
    """

    def __init__(self, config: CLIPVisionConfig, layers: Layers):
        check_activation(config.hidden_act, "an image encoder")
        self.embeddings = CLIPVisionEmbeddings(config, layers)
        self.pre_layrnorm = layers.layer_norm(config.hidden_size, config.layer_norm_eps)  # transformers' own spelling
        self.encoder = CLIPEncoder(config, layers, is_causal=False)
        self.post_layernorm = layers.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, pixels: Float[Array, "b h w channels"]) -> Float[Array, "b c"]:
        states = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(states[-1][:, 0])


class CLIPModel(nnx.Module):
    """Images and texts to features that can be compared; neither is normalised."""

    def __init__(self, config: CLIPConfig, layers: Layers):
        self.text_model = CLIPTextModel(config.text, layers)
        self.vision_model = CLIPVisionModel(config.vision, layers)
        self.text_projection = layers.linear(config.text.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = layers.linear(config.vision.hidden_size, config.projection_dim, bias=False)

    def image_features(self, pixels: Float[Array, "b h w channels"]) -> Float[Array, "b projection_dim"]:
        """Returns the features of normalised pixels; h and w are `image_size`."""
        return self.visual_projection(self.vision_model(jnp.asarray(pixels)))

    def text_features(self, input_ids: TokenIds) -> Float[Array, "b projection_dim"]:
        """Returns the features of token ids."""
        last = self.text_model(input_ids)[-1]
        return self.text_projection(self.text_model.at_end(last, input_ids))
