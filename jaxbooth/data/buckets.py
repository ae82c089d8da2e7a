"""Aspect-ratio buckets: images keep nearly all of their width and height, and every batch has one shape.

Which bucket a step takes is a pure function of (seed, step), so that a resumed run takes the ones that an
uninterrupted run would have taken.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.prng import host_generator

BLOCK = 10  # consecutive steps that share a bucket; a constant, so that steps per dispatch never change the training


def nearest_bucket(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """Returns the (height, width) that suits an image of `size` (width, height).

    Both are multiples of `multiple` between half and twice the resolution. As with NovelAI's buckets
    (github.com/NovelAI/novelai-aspect-ratio-bucketing), each shape has as many pixels as fit into resolution²: a side
    comes with the largest other side. The square is always among them. The nearest aspect wins, then the larger area.

    Raises:
        UserError: no shape fits the resolution.
    """
    if resolution < multiple:
        raise UserError(f"--data.resolution {resolution} is too small for buckets; it has to be {multiple} or more.")
    width, height = size
    return min(
        bucket_shapes(resolution, multiple),
        key=lambda shape: (round(abs(math.log(shape[0] * width / (shape[1] * height))), 9), -shape[0] * shape[1]),
    )


def bucket_shapes(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """Lists the buckets' (height, width) in ascending order, see `nearest_bucket`."""
    square = resolution // multiple * multiple
    shapes = {(square, square)}
    for side in range(-(-resolution // 2 // multiple) * multiple, 2 * resolution + 1, multiple):
        other = min(resolution**2 // side, 2 * resolution) // multiple * multiple
        if 2 * other >= resolution:
            shapes |= {(side, other), (other, side)}
    return sorted(shapes)


def group_by_bucket(
    sizes: Sequence[tuple[int, int]], resolution: int, multiple: int
) -> dict[tuple[int, int], list[int]]:
    """Groups images, given their (width, height), by bucket: their indices in order, buckets by (height, width).

    Raises:
        UserError: no shape fits the resolution.
    """
    buckets = [nearest_bucket(size, resolution, multiple) for size in sizes]
    return {
        bucket: [index for index, other in enumerate(buckets) if other == bucket] for bucket in sorted(set(buckets))
    }


def enlargement_factor(size: tuple[int, int], bucket: tuple[int, int]) -> float:
    """The factor by which a (width, height) image is resized to cover a (height, width) bucket; above 1 it blurs."""
    return max(bucket[0] / size[1], bucket[1] / size[0])


@dataclass(frozen=True)
class BucketOrder:
    """Which bucket each step takes.

    Blocks of BLOCK steps come in epochs. In an epoch, each bucket has blocks in proportion to its images (the
    smallest whole numbers that are), in an order that is shuffled anew.

    Attributes:
        counts: images of each bucket, at least one.
        seed: decides the order, together with the epoch.
    """

    counts: tuple[int, ...]
    seed: int

    @property
    def shares(self) -> tuple[int, ...]:
        """Blocks that each bucket has in an epoch."""
        return tuple(count // math.gcd(*self.counts) for count in self.counts)

    def epoch(self, number: int) -> np.ndarray:
        """Returns the (blocks,) buckets of an epoch."""
        return host_generator(self.seed, number).permutation(np.repeat(np.arange(len(self.shares)), self.shares))

    def bucket(self, step: int) -> int:
        """The bucket that a step takes."""
        number, place = divmod(step // BLOCK, sum(self.shares))
        return int(self.epoch(number)[place])

    def block_end(self, step: int) -> int:
        """The first later step that may take another bucket; without another bucket, sys.maxsize."""
        return (step // BLOCK + 1) * BLOCK if len(self.counts) > 1 else sys.maxsize

    def visits(self, step: int) -> int:
        """How many of the steps 0 .. step-1 took the bucket that `step` takes."""
        block, offset = divmod(step, BLOCK)
        number, place = divmod(block, sum(self.shares))
        epoch = self.epoch(number)
        bucket = epoch[place]
        blocks = number * self.shares[bucket] + int((epoch[:place] == bucket).sum())
        return blocks * BLOCK + offset
