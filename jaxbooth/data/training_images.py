"""The subjects' images as a run trains on them and compares with them: each file is decoded once."""

from pathlib import Path

import numpy as np

from jaxbooth.data.crops import Augmentations, CropSpec
from jaxbooth.data.images import ImageFile, load_image

MAX_KEPT = 2**32  # bytes of augmentations; those of further images are made again when they are encoded


class TrainingImages:
    """Decodes the subjects' images.

    Args:
        side: of the square that generated images are compared with, in pixels.
        masked: masks say what of an image is learned.
    """

    def __init__(self, side: int, masked: bool):
        self._square, self._masked = CropSpec(side, side), masked
        self._augmentations: dict[Path, Augmentations] = {}
        self._kept_bytes = 0
        self._squares: dict[Path, np.ndarray] = {}

    def load(self, file: ImageFile, crops: CropSpec) -> Augmentations:
        """Decodes an image, keeps its center square, and keeps its augmentations until `take` is called.

        Raises:
            UserError: see `load_image`.
        """
        image = load_image(file.path, self._masked)
        augmentations = crops.augment(image, file.index)
        self._squares[file.path] = self._square.augment(image, file.index).pixels[0]
        size = augmentations.pixels.nbytes + augmentations.masks.nbytes
        if self._kept_bytes + size <= MAX_KEPT:
            self._augmentations[file.path] = augmentations
            self._kept_bytes += size
        return augmentations

    def take(self, file: ImageFile, crops: CropSpec) -> Augmentations:
        """Returns an image's augmentations, and forgets them."""
        kept = self._augmentations.pop(file.path, None)
        return kept or crops.augment(load_image(file.path, self._masked), file.index)

    def square(self, file: ImageFile) -> np.ndarray:
        """Returns the center square of an image that was loaded, (side, side, 3) uint8."""
        return self._squares[file.path]
