"""Means with bootstrap intervals (Efron and Tibshirani 1993, chapter 13: the percentile interval)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95
CHUNK = 100  # draws at once, to bound the memory


class Estimate(NamedTuple):
    """A mean and its 95 % interval.

    Attributes:
        low, high: None where one picture leaves nothing to draw.
        count: pictures.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def estimate(scores: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Returns the mean over all prompts and its interval.

    A draw takes as many prompts as there are, with replacement, and of each as many of its pictures, so that the
    interval covers other prompts and other seeds. Pairs of a picture with itself never count.

    Args:
        scores: of each prompt (n,), or (n, n) for all pairs of its pictures.
    """
    stacked = np.stack(scores).astype(np.float64)
    prompts, pictures = stacked.shape[:2]
    mean = float(mean_of(stacked, np.arange(prompts)[None], np.arange(pictures)[None, None].repeat(prompts, 1))[0])
    if prompts * pictures == 1:
        return Estimate(mean, None, None, 1)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS // CHUNK):
        which = rng.integers(prompts, size=(CHUNK, prompts))
        draws.append(mean_of(stacked, which, rng.integers(pictures, size=(CHUNK, prompts, pictures))))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(draws), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), prompts * pictures)


def mean_of(scores: np.ndarray, prompts: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Returns the mean of each draw; NaN where it holds no pair of different pictures.

    Args:
        scores: (P, n) or (P, n, n).
        prompts: (draws, P) numbers of prompts.
        pictures: (draws, P, n) numbers of pictures of each.
    """
    if scores.ndim == 2:
        return scores[prompts[..., None], pictures].mean(axis=(1, 2))
    first, second = pictures[..., :, None], pictures[..., None, :]
    different = first != second
    total = np.where(different, scores[prompts[..., None, None], first, second], 0).sum(axis=(1, 2, 3))
    count = different.sum(axis=(1, 2, 3))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
