"""The whole CLIP: its image tower, and both towers' features (transformers `CLIPModel`)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.broadcast import add_broadcast, broadcast
from jaxbooth.models.clip import CLIPEncoder, CLIPTextModel, TokenIds
from jaxbooth.models.config import CLIPConfig, CLIPVisionConfig
from jaxbooth.models.encoder import check_activation
from jaxbooth.models.layers import Layers
from jaxbooth.params import Array


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
        check_activation(config.hidden_act, "an image tower")
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
