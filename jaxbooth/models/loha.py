"""LoHa: the change of a kernel is the elementwise product of two low-rank matrices.

(A1 B1) * (A2 B2) has a rank of up to rank^2 (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098; in LyCORIS, Yeh et al.
2023, arXiv 2309.14859). The names are LyCORIS': `hada_w1_b` takes in, `hada_w1_a` gives out, and so do those of the
second matrix. Unlike LoRA's, the product has to be formed; it is formed again for the backward pass and never kept.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbooth.models.low_rank import Parts, Product, Shape, low_rank_kernel
from jaxbooth.params import Array

HADA_W1_A, HADA_W1_B = "hada_w1_a.kernel", "hada_w1_b.kernel"
HADA_W2_A, HADA_W2_B = "hada_w2_a.kernel", "hada_w2_b.kernel"


def shapes(kernel: Shape, rank: int, _factor: int) -> dict[str, Shape]:
    """Returns the shapes of the factors of a kernel (*window, fan_in, fan_out)."""
    *window, fan_in, fan_out = kernel
    down, up = (*window, fan_in, rank), (*(1 for _ in window), rank, fan_out)
    return {HADA_W1_A: up, HADA_W1_B: down, HADA_W2_A: up, HADA_W2_B: down}


def initial(part: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Returns a factor before the first step: normal as in LyCORIS, and one factor zero."""
    if part == HADA_W2_A:
        return np.zeros(shape, np.float32)
    return rng.normal(scale=0.1 if part == HADA_W1_A else 1.0, size=shape).astype(np.float32)


def apply(parts: Parts, x: Array, product: Product) -> Array:
    """Applies the change, which is formed in float32 and rounded once."""

    def formed(parts: Parts, x: Array) -> Array:
        first = factor_product(parts[HADA_W1_B], parts[HADA_W1_A])
        second = factor_product(parts[HADA_W2_B], parts[HADA_W2_A])
        return product(x, (first * second).astype(x.dtype))

    return jax.checkpoint(formed)(parts, x)


def factor_product(
    down: Float[Array, "*window fan_in rank"], up: Float[Array, "*ones rank fan_out"]
) -> Float[Array, "*window fan_in fan_out"]:
    """Returns the product of two factors, summed in float32."""
    return jnp.matmul(down, up.reshape(up.shape[-2:]), preferred_element_type=jnp.float32)


def kernel(parts: Parts) -> Array:
    """Returns the change in the kernel's shape, float32."""
    first = low_rank_kernel(parts[HADA_W1_B], parts[HADA_W1_A])
    return first * low_rank_kernel(parts[HADA_W2_B], parts[HADA_W2_A])


@jax.checkpoint
def squared_norm(parts: Parts) -> Float[Array, ""]:
    """Returns the squared Frobenius norm of the change."""
    return jnp.sum(jnp.square(kernel(parts)))
