"""What the layers of text and image encoders share: self-attention and the two-layer perceptron."""

from flax import nnx
from jaxtyping import Float

from jaxbooth.errors import UserError
from jaxbooth.models.attention import attention
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
