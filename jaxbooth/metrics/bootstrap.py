"""Means with bootstrap intervals (Efron and Tibshirani 1993, chapter 13: the percentile interval)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 100  # bounds the memory


class Estimate(NamedTuple):
    """A mean and its 95 % interval.

    Attributes:
        low, high: None for a single image, which cannot be resampled.
        count: images.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


def bootstrap_mean(scores: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Returns the mean over all prompts and its interval.

    A resample draws as many prompts as there are, with replacement, and as many images of each, so that the interval
    covers other prompts and other seeds. An image never forms a pair with itself.

    Args:
        scores: of each prompt, (n,) of its images or (n, n) of all pairs of them.
    """
    stacked = np.stack(scores).astype(np.float64)
    prompts, images = stacked.shape[:2]
    every_image = np.arange(images)[None, None].repeat(prompts, 1)
    mean = float(resampled_means(stacked, np.arange(prompts)[None], every_image)[0])
    if prompts * images == 1:
        return Estimate(mean, None, None, 1)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        prompt_indices = rng.integers(prompts, size=(RESAMPLES_AT_ONCE, prompts))
        image_indices = rng.integers(images, size=(RESAMPLES_AT_ONCE, prompts, images))
        means.append(resampled_means(stacked, prompt_indices, image_indices))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(np.concatenate(means), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), prompts * images)


def resampled_means(scores: np.ndarray, prompts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns the mean of each resample; NaN where it holds no pair of different images.

    Args:
        scores: (P, n) or (P, n, n).
        prompts: (resamples, P) indices of prompts.
        images: (resamples, P, n) indices of each prompt's images.
    """
    if scores.ndim == 2:
        return scores[prompts[..., None], images].mean(axis=(1, 2))
    first, second = images[..., :, None], images[..., None, :]
    different = first != second
    total = np.where(different, scores[prompts[..., None, None], first, second], 0).sum(axis=(1, 2, 3))
    count = different.sum(axis=(1, 2, 3))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
