"""Means with bootstrap intervals (Efron and Tibshirani 1993, chapter 13: the percentile interval)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 100  # draws at once, to bound the memory


class Estimate(NamedTuple):
    """A mean and its 95 % interval.

    Attributes:
        low, high: None where one image leaves nothing to draw.
        count: images.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def bootstrap_mean(scores: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Returns the mean over all prompts and its interval.

    A draw takes as many prompts as there are, with replacement, and of each as many of its images, so that the
    interval covers other prompts and other seeds. Pairs of an image with itself never count.

    Args:
        scores: of each prompt (n,), or (n, n) for all pairs of its images.
    """
    stacked = np.stack(scores).astype(np.float64)
    prompts, images = stacked.shape[:2]
    every_image = np.arange(images)[None, None].repeat(prompts, 1)
    mean = float(resampled_means(stacked, np.arange(prompts)[None], every_image)[0])
    if prompts * images == 1:
        return Estimate(mean, None, None, 1)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        which = rng.integers(prompts, size=(RESAMPLES_AT_ONCE, prompts))
        draws.append(resampled_means(stacked, which, rng.integers(images, size=(RESAMPLES_AT_ONCE, prompts, images))))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(np.concatenate(draws), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), prompts * images)


def resampled_means(scores: np.ndarray, prompts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns the mean of each draw; NaN where it holds no pair of different images.

    Args:
        scores: (P, n) or (P, n, n).
        prompts: (draws, P) numbers of prompts.
        images: (draws, P, n) numbers of images of each.
    """
    if scores.ndim == 2:
        return scores[prompts[..., None], images].mean(axis=(1, 2))
    first, second = images[..., :, None], images[..., None, :]
    different = first != second
    total = np.where(different, scores[prompts[..., None, None], first, second], 0).sum(axis=(1, 2, 3))
    count = different.sum(axis=(1, 2, 3))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
