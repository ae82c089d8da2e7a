"""Matrices as products of two factors of a given rank, by singular values, and what that leaves out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

EXACT_SIDE = 1024  # up to this side, all singular values are computed
OVERSAMPLING = 16  # columns beside the rank, and passes, of the randomized decomposition
PASSES = 4
NEGLIGIBLE = 1e-7  # of the largest length, which float32 does not tell from rounding


class Factors(NamedTuple):
    """An approximation B A.

    Attributes:
        squared_error: squared Frobenius norm of what it leaves out, measured and not estimated.
        squared_norm: of the whole matrix.
    """

    lora_a: Float[np.ndarray, "rank inputs"]
    lora_b: Float[np.ndarray, "outputs rank"]
    squared_error: float
    squared_norm: float


def truncate(matrix: Float[np.ndarray, "outputs inputs"], rank: int) -> Factors:
    """Returns the nearest matrix of a rank as two factors that share the singular values, float32.

    Large matrices are first projected onto a space of a few more columns than the rank, found by power iteration (Halko
    et al. 2011, arXiv 0909.4061, algorithm 4.4); a matrix of at most that rank loses nothing by it.
    """
    matrix = np.asarray(matrix, np.float32)
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= EXACT_SIDE or 4 * rank >= min(matrix.shape):
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    else:
        basis = leading_columns(matrix, rank + OVERSAMPLING)
        inner, values, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ inner
    root = np.sqrt(values[:rank])
    lora_a, lora_b = root[:, None] * vt[:rank], u[:, :rank] * root
    return Factors(lora_a, lora_b, squared(matrix - lora_b @ lora_a), squared(matrix))


def leading_columns(matrix: np.ndarray, count: int) -> np.ndarray:
    """Returns orthonormal columns that span nearly the leading left singular vectors."""
    start = np.random.default_rng(0).normal(size=(matrix.shape[1], count)).astype(np.float32)
    basis = orthonormal(matrix @ start)
    for _ in range(PASSES):
        basis = orthonormal(matrix @ orthonormal(matrix.T @ basis))
    return basis


def orthonormal(columns: Float[np.ndarray, "rows count"]) -> Float[np.ndarray, "rows kept"]:
    """Returns orthonormal columns with the same span, float32; the second pass mends what rounding did in the first."""
    once = columns @ triangle(columns).to_orthonormal.astype(np.float32)
    return once @ triangle(once).to_orthonormal.astype(np.float32)


class Triangle(NamedTuple):
    """Small factors of a tall matrix X, float64, which need only X^T X and no pass over X column by column.

    Attributes:
        to_orthonormal: T, with which X T has orthonormal columns.
        from_orthonormal: R, with which X = (X T) R.
    """

    to_orthonormal: Float[np.ndarray, "count kept"]
    from_orthonormal: Float[np.ndarray, "kept count"]


def triangle(columns: Float[np.ndarray, "rows count"]) -> Triangle:
    """Returns the small factors; directions below `NEGLIGIBLE` of the largest are left out."""
    exact = columns.astype(np.float64)
    squares, vectors = np.linalg.eigh(exact.T @ exact)
    lengths = np.sqrt(np.maximum(squares, 0))
    is_kept = lengths > NEGLIGIBLE * lengths[-1]
    is_kept[-1] = True  # of zeros, too
    lengths, vectors = lengths[is_kept], vectors[:, is_kept]
    return Triangle(vectors / np.where(lengths > 0, lengths, 1), lengths[:, None] * vectors.T)


def truncate_product(
    lora_b: Float[np.ndarray, "outputs old"], lora_a: Float[np.ndarray, "old inputs"], rank: int
) -> Factors:
    """Returns `truncate` of B A without forming it: by the small matrix between two orthonormal bases."""
    left, right = triangle(lora_b), triangle(lora_a.T)
    inner = truncate(left.from_orthonormal @ right.from_orthonormal.T, rank)
    to_b, to_a = left.to_orthonormal @ inner.lora_b, inner.lora_a @ right.to_orthonormal.T
    return inner._replace(lora_a=to_a.astype(np.float32) @ lora_a, lora_b=lora_b @ to_b.astype(np.float32))


def squared(matrix: np.ndarray) -> float:
    """Returns the squared Frobenius norm."""
    return float(np.sum(np.square(matrix, dtype=np.float64)))


class LayerError(NamedTuple):
    """What an approximation left out of one layer's change."""

    layer: str
    squared_error: float
    squared_norm: float

    @property
    def relative(self) -> float:
        """The error's norm over that of the change."""
        return float(np.sqrt(self.squared_error / self.squared_norm)) if self.squared_norm else 0.0


def total_error(errors: Sequence[LayerError]) -> float:
    """Returns the norm of all errors over that of all changes."""
    norm = sum(error.squared_norm for error in errors)
    return float(np.sqrt(sum(error.squared_error for error in errors) / norm)) if norm else 0.0
