"""The augmentations of an image that the model sees: masked, cropped and mirrored, with SDXL's time ids of each."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxbooth.data.images import ImageFile, LoadedImage, load_image
from jaxbooth.prng import host_generator

MAX_COVER = 2**26  # pixels of a whole resized image, 256 MiB in Pillow


class Augmentations(NamedTuple):
    """The augmentations of one image.

    Attributes:
        pixels: (augmentations, height, width, 3) uint8.
        time_ids: (augmentations, 6) float32, each row as SDXL's `time_ids`: height and width of the upright file,
            top and left of the crop in the resized image (mirrored first where the augmentation is), target height and
            width.
        masks: (augmentations, height, width) float32, 1 where the image is learned and 0 where it is ignored.
    """

    pixels: np.ndarray
    time_ids: np.ndarray
    masks: np.ndarray


class CropSpec(NamedTuple):
    """Which augmentations of an image are made: crops times mirrorings.

    Attributes:
        height, width: of every augmentation, in pixels.
        crops: 0 for one center crop, else that many random ones.
        flip: each crop also mirrored.
        seed: decides the random crops, together with the image's index in its folder.
    """

    height: int
    width: int
    crops: int = 0
    flip: bool = False
    seed: int = 0

    def augment(self, loaded: LoadedImage, index: int) -> Augmentations:
        """Returns the augmentations of image `index` of its folder: the crops, then their mirror images if `flip`.

        The image keeps its shape and is resized to just cover (height, width). Without a mask, all of it is learned.
        """
        width, height = loaded.size
        scale = max(self.height / height, self.width / width)
        cover = max(self.width, round(width * scale)), max(self.height, round(height * scale))
        margin = np.array(cover[::-1]) - (self.height, self.width)
        corners = self.corners(margin, index)
        pixels = self.crop_plane(loaded.image, cover, corners, Image.Resampling.LANCZOS)
        if loaded.mask is None:
            masks = np.ones(pixels.shape[:3], np.float32)
        else:
            masks = self.crop_plane(loaded.mask, cover, corners, Image.Resampling.BOX).astype(np.float32) / 255
        if self.flip:
            mirrored = np.stack([corners[:, 0], margin[1] - corners[:, 1]], 1)
            corners = np.concatenate([corners, mirrored])
        return Augmentations(pixels, self.time_ids(loaded, corners), masks)

    def corners(self, margin: np.ndarray, index: int) -> np.ndarray:
        """Returns the crops' (crops, 2) top and left, given the (2,) rows and columns that a crop leaves over."""
        if self.crops:
            return host_generator(self.seed, index).integers(0, margin + 1, (self.crops, 2))
        return margin[None] // 2

    def time_ids(self, loaded: LoadedImage, corners: np.ndarray) -> np.ndarray:
        """Returns (corners, 6) rows of `Augmentations.time_ids`."""
        width, height = loaded.size
        return np.array([(height, width, *corner, self.height, self.width) for corner in corners], np.float32)

    def crop_plane(
        self, plane: Image.Image, cover: tuple[int, int], corners: np.ndarray, resample: Image.Resampling
    ) -> np.ndarray:
        """Crops (augmentations, height, width, ...) of an image or mask that is resized to (width, height) `cover`.

        A long strip, which would be gigabytes when resized, is cropped before.
        """
        if math.prod(cover) <= MAX_COVER:
            whole = np.asarray(plane.resize(cover, resample))
            crops = [whole[top : top + self.height, left : left + self.width] for top, left in corners]
        else:
            crops = [np.asarray(self.crop_and_resize(plane, cover, corner, resample)) for corner in corners]
        stacked = np.stack(crops)
        return np.concatenate([stacked, stacked[:, :, ::-1]]) if self.flip else stacked

    def crop_and_resize(
        self, plane: Image.Image, cover: tuple[int, int], corner: np.ndarray, resample: Image.Resampling
    ) -> Image.Image:
        """Resizes the part of an image or mask that a crop at `corner` (top, left) of its `cover` shows."""
        top, left = corner.tolist()
        x_scale = plane.width / cover[0]  # pixels of the image in one of the cover
        y_scale = plane.height / cover[1]
        right = min(plane.width, (left + self.width) * x_scale)
        bottom = min(plane.height, (top + self.height) * y_scale)
        box = (left * x_scale, top * y_scale, right, bottom)
        return plane.resize((self.width, self.height), resample, box)


def load_augmentations(files: Sequence[ImageFile], crops: CropSpec, masked: bool = False) -> Iterator[Augmentations]:
    """Decodes images and yields each one's augmentations, in order, with their masks if `masked`."""
    for file in files:
        yield crops.augment(load_image(file.path, masked), file.index)
