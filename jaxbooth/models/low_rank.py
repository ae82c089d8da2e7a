"""LoRA (Hu et al. 2021, arXiv 2106.09685): the change of a kernel is A B, with `lora_A` from fan-in to rank.

Factors lie as kernels do, inputs before outputs: A is (*window, fan_in, rank), B is (*ones, rank, fan_out), so that a
convolution's A does the work of its window. DoRA (Liu et al. 2024, arXiv 2402.09353) has the same factors, and learns
each output's magnitude besides.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbooth.params import Array

LORA_A, LORA_B = "lora_A.kernel", "lora_B.kernel"

Parts = Mapping[str, Array]  # of one layer's adapter, by the ends of their names
Shape = tuple[int, ...]
Product = Callable[[Array, Array], Array]  # of a layer's inputs and a kernel, with the layer's stride and padding


def shapes(kernel: Shape, rank: int, _factor: int) -> dict[str, Shape]:
    """Returns the shapes of the factors of a kernel (*window, fan_in, fan_out)."""
    *window, fan_in, fan_out = kernel
    return {LORA_A: (*window, fan_in, rank), LORA_B: (*(1 for _ in window), rank, fan_out)}


def initial(part: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Returns a factor before the first step: A uniform as in PEFT, B zero."""
    return np.zeros(shape, np.float32) if part == LORA_B else uniform(shape, rng)


def uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Returns torch's default for a layer's weights: uniform, up to 1 / sqrt(fan-in)."""
    bound = 1 / np.sqrt(np.prod(shape[:-1]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def apply(parts: Parts, x: Array, product: Product) -> Array:
    """Applies A, then B, without their product."""
    return product(product(x, parts[LORA_A]), parts[LORA_B])


def kernel(parts: Parts) -> Array:
    """Returns A B in the kernel's shape, float32."""
    return low_rank_kernel(parts[LORA_A], parts[LORA_B])


def low_rank_kernel(
    down: Float[Array, "*window fan_in rank"], up: Float[Array, "*ones rank fan_out"]
) -> Float[Array, "*window fan_in fan_out"]:
    """Returns the product of two factors, float32."""
    return jnp.matmul(down.astype(jnp.float32), up.reshape(up.shape[-2:]).astype(jnp.float32), precision="highest")


def squared_norm(parts: Parts) -> Float[Array, ""]:
    """Returns the squared Frobenius norm of A B, by way of the (rank, rank) matrix A^T A."""
    return jnp.sum(output_squares(as_matrix(parts[LORA_A]), as_matrix(parts[LORA_B])))


def as_matrix(factor: Float[Array, "*window fan_in fan_out"]) -> Float[Array, "rows fan_out"]:
    """Flattens all axes but the last."""
    return factor.reshape(-1, factor.shape[-1])


def output_squares(down: Float[Array, "rows rank"], up: Float[Array, "rank outputs"]) -> Float[Array, " outputs"]:
    """Returns the squared norm of each column of A B."""
    gram = jnp.matmul(down.T, down, precision="highest")
    return jnp.sum(up * jnp.matmul(gram, up, precision="highest"), axis=0)
