"""LoKr: the change of a kernel is the Kronecker product of a small matrix and a larger one.

(KronA, Edalati et al. 2022, arXiv 2212.10650; in LyCORIS, Yeh et al. 2023, arXiv 2309.14859.) Inputs are cut into m
groups of n, outputs into o groups of p, and the weight between two places is w1[m, o] w2[n, p]. The names are LyCORIS':
`lokr_w1` is (m, o) and `lokr_w2` is (*window, n, p). Where the rank is less than half of n or p, w2 is the product of
`lokr_w2_b`, which takes in, and `lokr_w2_a`; else it is one matrix, and alpha / rank does not apply. Applied to groups
one after the other, the factors cost far less than the kernel that they make.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbooth.models.low_rank import Parts, Product, Shape, as_matrix, low_rank_kernel, output_squares, uniform
from jaxbooth.params import Array

LOKR_W1, LOKR_W2 = "lokr_w1.kernel", "lokr_w2.kernel"
LOKR_W2_A, LOKR_W2_B = "lokr_w2_a.kernel", "lokr_w2_b.kernel"
NEAREST = -1  # the factor that asks for factors as near to each other as there are


def factorize(size: int, factor: int) -> tuple[int, int]:
    """Returns two factors of a number, the smaller one first: `factor` and what is left, if it divides.

    Else the smaller one is the largest that is at most `factor`, or the root for NEAREST (LyCORIS' `factorization`).
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    root = math.isqrt(size)
    limit = root if factor == NEAREST else min(factor, root)
    small = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return small, size // small


def shapes(kernel: Shape, rank: int, factor: int) -> dict[str, Shape]:
    """Returns the shapes of the factors of a kernel (*window, fan_in, fan_out)."""
    *window, fan_in, fan_out = kernel
    m, n = factorize(fan_in, factor)
    o, p = factorize(fan_out, factor)
    if rank >= max(n, p) / 2:
        return {LOKR_W1: (m, o), LOKR_W2: (*window, n, p)}
    return {LOKR_W1: (m, o), LOKR_W2_A: (*(1 for _ in window), rank, p), LOKR_W2_B: (*window, n, rank)}


def initial(part: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Returns a factor before the first step: uniform as in LyCORIS, and w2 zero."""
    return np.zeros(shape, np.float32) if part in (LOKR_W2, LOKR_W2_B) else uniform(shape, rng)


def apply(parts: Parts, x: Array, product: Product) -> Array:
    """Applies w2 to every group of inputs as if it were a row of the batch, then w1 to the groups."""
    w1 = parts[LOKR_W1]
    groups = jnp.moveaxis(x.reshape(*x.shape[:-1], len(w1), -1), -2, 1)
    rows = groups.reshape(-1, *groups.shape[2:])
    if LOKR_W2 in parts:
        rows = product(rows, parts[LOKR_W2])
    else:
        rows = product(product(rows, parts[LOKR_W2_B]), parts[LOKR_W2_A])
    groups = rows.reshape(len(x), len(w1), *rows.shape[1:])
    outputs = jnp.einsum("bm...p,mo->b...op", groups, w1)
    return outputs.reshape(*outputs.shape[:-2], -1)


def larger_factor(parts: Parts) -> Float[Array, "*window n p"]:
    """Returns w2 in float32."""
    if LOKR_W2 in parts:
        return parts[LOKR_W2].astype(jnp.float32)
    return low_rank_kernel(parts[LOKR_W2_B], parts[LOKR_W2_A])


def kernel(parts: Parts) -> Array:
    """Returns the change in the kernel's shape, float32."""
    w1, w2 = parts[LOKR_W1].astype(jnp.float32), larger_factor(parts)
    *window, n, p = w2.shape
    grid = w1[:, None, :, None] * w2[..., None, :, None, :]  # (*window, m, n, o, p)
    return grid.reshape(*window, len(w1) * n, w1.shape[1] * p)


def squared_norm(parts: Parts) -> Float[Array, ""]:
    """Returns the squared Frobenius norm of the change: the product of its factors'."""
    first = jnp.sum(jnp.square(parts[LOKR_W1]))
    if LOKR_W2 in parts:
        return first * jnp.sum(jnp.square(parts[LOKR_W2]))
    return first * jnp.sum(output_squares(as_matrix(parts[LOKR_W2_B]), as_matrix(parts[LOKR_W2_A])))
