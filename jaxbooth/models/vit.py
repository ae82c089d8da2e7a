"""The vision transformers DINO and DINOv2 (transformers `modeling_vit.py` and `modeling_dinov2.py`).

Names are those of `Dinov2Model`; `jaxbooth.weights.names` says which words of them `ViTModel` and older files have
otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.broadcast import add_broadcast, broadcast
from jaxbooth.models.clip import MLP, SelfAttention, check_activation
from jaxbooth.models.config import Dinov2Config, ViTConfig
from jaxbooth.models.layers import Layers
from jaxbooth.params import Array

SHARPNESS = -0.75  # a of the cubic convolution kernel (Keys 1981) as torch has it; jax.image.resize has -0.5


def cubic_weights(entries: int, wanted: int) -> np.ndarray:
    """Returns the (wanted, entries) float64 matrix of torch's `interpolate(mode="bicubic", align_corners=False)`.

    Taps beyond either end read the entry at that end, and nothing is smoothed when `wanted` is smaller.
    """
    weights = np.zeros((wanted, entries))
    places = (np.arange(wanted) + 0.5) * entries / wanted - 0.5
    for tap in range(-1, 3):
        sources = np.floor(places) + tap
        distance = np.abs(places - sources)
        near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
        far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
        columns = np.clip(sources, 0, entries - 1).astype(int)
        np.add.at(weights, (np.arange(wanted), columns), np.where(distance <= 1, near, far))
    return weights


def positions_for(table: Array, height: int, width: int) -> Array:
    """Returns the positions of a grid of patches, the class token's first; transformers `interpolate_pos_encoding`.

    Args:
        table: (1 + n * n, d), of the class token and of a square of patches row by row.
        height, width: patches wanted.

    Returns:
        (1 + height * width, d); `table` itself where that is the square it was learned at.
    """
    side = round((len(table) - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table[1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(cubic_weights(side, wanted), table.dtype) for wanted in (height, width))
    resized = jnp.einsum("yi,xj,ijd->yxd", rows, columns, grid)
    return jnp.concatenate([table[:1], resized.reshape(height * width, -1)])


VisionConfig = ViTConfig | Dinov2Config


class PatchEmbeddings(nnx.Module):
    """Pixels of each patch to one vector."""

    def __init__(self, config: VisionConfig, layers: Layers):
        self.projection = layers.patches(config.num_channels, config.hidden_size, config.patch_size)


class Embeddings(nnx.Module):
    """Patches after a class token, with learned positions."""

    def __init__(self, config: VisionConfig, layers: Layers):
        entries = (config.image_size // config.patch_size) ** 2 + 1
        self.cls_token = nnx.Param(jnp.zeros((1, 1, config.hidden_size)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, entries, config.hidden_size)))
        self.patch_embeddings = PatchEmbeddings(config, layers)

    def __call__(self, pixels: Float[Array, "b h w channels"]) -> Float[Array, "b s c"]:
        patches = self.patch_embeddings.projection(pixels)
        batch, height, width, channels = patches.shape
        token = broadcast(self.cls_token[...], (batch, 1, channels), patches.dtype)
        positions = positions_for(self.position_embeddings[...][0], height, width)
        return add_broadcast(jnp.concatenate([token, patches.reshape(batch, -1, channels)], axis=1), positions)


class LayerScale(nnx.Module):
    """A learned factor for each channel (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int):
        self.lambda1 = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        return x * broadcast(self.lambda1[...], x.shape, x.dtype)


class SwiGLU(nnx.Module):
    """A perceptron of which one half of the hidden values gates the other, in DINOv2's giant."""

    def __init__(self, width: int, inner: int, layers: Layers):
        self.weights_in = layers.linear(width, 2 * inner)
        self.weights_out = layers.linear(inner, width)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        gates, values = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(nnx.silu(gates) * values)


class Layer(nnx.Module):
    """A pre-norm transformer layer; DINOv2 scales what it adds."""

    def __init__(self, config: VisionConfig, layers: Layers):
        width, inner = config.hidden_size, config.intermediate_size
        is_second = isinstance(config, Dinov2Config)
        self.norm1 = layers.layer_norm(width, config.layer_norm_eps)
        self.attention = SelfAttention(width, config.num_attention_heads, layers, bias=config.qkv_bias)
        self.layer_scale1 = LayerScale(width) if is_second else None
        self.norm2 = layers.layer_norm(width, config.layer_norm_eps)
        gated = is_second and config.use_swiglu_ffn
        self.mlp = SwiGLU(width, inner, layers) if gated else MLP(width, inner, config.hidden_act, layers)
        self.layer_scale2 = LayerScale(width) if is_second else None

    @jax.jit  # all are alike: traced once
    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        added = self.attention(self.norm1(x))
        x += added if self.layer_scale1 is None else self.layer_scale1(added)
        added = self.mlp(self.norm2(x))
        return x + (added if self.layer_scale2 is None else self.layer_scale2(added))


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig, layers: Layers):
        self.layer = nnx.List([Layer(config, layers) for _ in range(config.num_hidden_layers)])


class VisionTransformer(nnx.Module):
    """Pixels to the class token's feature.

    Raises:
        UserError: the configuration's activation is not supported.
    """

    def __init__(self, config: VisionConfig, layers: Layers):
        check_activation(config.hidden_act, "a vision transformer")
        self.embeddings = Embeddings(config, layers)
        self.encoder = Encoder(config, layers)
        self.layernorm = layers.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, pixels: Float[Array, "b h w channels"]) -> Float[Array, "b c"]:
        """Returns the features of normalised pixels of any size."""
        x = self.embeddings(jnp.asarray(pixels))
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x[:, 0])
