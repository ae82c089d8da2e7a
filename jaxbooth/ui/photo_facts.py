"""What of a photo may spoil a training: it is blurred, or nearly the same as another one."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from scipy.fft import dctn

from jaxbooth.data.images import load_image

SIDE = 512  # pixels of the shorter side at which sharpness is measured
TILES = 4  # along each side: one sharp part is enough, as the ground behind a subject may be soft
# Of the sharpest tile. Sharp photos have 235 to 5800; blurred with a sigma of 2 pixels they have 7 to 105, with 3 at
# most 39.
MIN_SHARPNESS = 40
HASH = 16  # frequencies along each side
MAX_DIFFERENT = 24  # bits; copies that were resized, compressed, brightened or cropped by 2% differ in 20 at most,
# and different photos of one subject in 40 at least
T = TypeVar("T")


class PhotoFacts(NamedTuple):
    """What the pixels of a photo say.

    Attributes:
        size: width and height of the file, upright.
        fingerprint: (HASH * HASH - 1,) bool; similar images differ in few places.
        sharpness: see `measure_sharpness`.
    """

    size: tuple[int, int]
    fingerprint: np.ndarray
    sharpness: float

    @property
    def may_be_blurred(self) -> bool:
        """Whether nothing in it is sharp."""
        return self.sharpness < MIN_SHARPNESS


def read_facts(path: Path) -> PhotoFacts:
    """Decodes a photo.

    Raises:
        UserError: see `load_image`.
    """
    loaded = load_image(path)
    grey = loaded.image.convert("L")
    return PhotoFacts(loaded.size, fingerprint(grey), measure_sharpness(grey))


def measure_sharpness(grey: Image.Image) -> float:
    """Returns the variance of the Laplacian in the sharpest of TILES x TILES tiles.

    Larger images are reduced to a shorter side of SIDE pixels first, so that the number of pixels does not matter.
    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    scale = min(1.0, SIDE / min(grey.size))
    size = max(1, round(grey.width * scale)), max(1, round(grey.height * scale))
    pixels = np.asarray(grey.resize(size, Image.Resampling.LANCZOS), np.float32)
    if min(pixels.shape) < 3 * TILES:
        return float(pixels.var())
    neighbours = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    laplacian = neighbours - 4 * pixels[1:-1, 1:-1]
    tiles = [tile for rows in np.array_split(laplacian, TILES) for tile in np.array_split(rows, TILES, axis=1)]
    return max(float(tile.var()) for tile in tiles)


def fingerprint(grey: Image.Image) -> np.ndarray:
    """Returns the perceptual hash of an image: which of its lowest frequencies are above their median.

    Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1.
    """
    pixels = np.asarray(grey.resize((4 * HASH, 4 * HASH), Image.Resampling.LANCZOS), np.float64)
    low = dctn(pixels)[:HASH, :HASH].ravel()[1:]
    return low > np.median(low)


def find_duplicates(fingerprints: Sequence[np.ndarray]) -> dict[int, int]:
    """Returns the index of a photo -> that of the first one that looks the same."""
    duplicates: dict[int, int] = {}
    for index, bits in enumerate(fingerprints):
        for before in range(index):
            if before not in duplicates and int((fingerprints[before] != bits).sum()) <= MAX_DIFFERENT:
                duplicates[index] = before
                break
    return duplicates


class Cache:
    """Remembers what is expensive to make; one at a time is made.

    Args:
        size: how many values are kept; those that were not asked for longest go first.
    """

    def __init__(self, size: int):
        self._size, self._lock = size, threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of a key."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self._size:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]
