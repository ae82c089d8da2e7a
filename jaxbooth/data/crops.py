"""The augmentations of an image that the model sees: covered, cropped and mirrored, with SDXL's facts about each."""

import math
from collections.abc import Iterator
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
    """Which augmentations of an image are kept: crops times mirrorings.

    Attributes:
        height, width: of every augmentation, in pixels.
        crops: 0 for one center crop, else that many random ones.
        flip: each crop also mirrored.
        seed: decides the random crops, together with the image's place in the folder.
    """

    height: int
    width: int
    crops: int
    flip: bool
    seed: int

    def apply(self, opened: LoadedImage, place: int) -> Augmentations:
        """Returns the augmentations of image `place` of its folder: the crops, then their mirror images if `flip`.

        The image keeps its shape and is resized to just cover (height, width). Without a mask, all of it is learned.
        """
        image, mask, (width, height) = opened.image, opened.mask, opened.size
        scale = max(self.height / height, self.width / width)
        cover = max(self.width, round(width * scale)), max(self.height, round(height * scale))
        spare = np.array(cover[::-1]) - (self.height, self.width)
        corners = self.corners(spare, place)
        pixels = self.cut(image, cover, corners, Image.Resampling.LANCZOS)
        if mask is None:
            weights = np.ones(pixels.shape[:3], np.float32)
        else:
            weights = self.cut(mask, cover, corners, Image.Resampling.BOX).astype(np.float32) / 255
        facts = [self.facts(opened, corners)]
        if self.flip:
            facts.append(self.facts(opened, np.stack([corners[:, 0], spare[1] - corners[:, 1]], 1)))
        return Augmentations(pixels, np.concatenate(facts), weights)

    def corners(self, spare: np.ndarray, place: int) -> np.ndarray:
        """Returns the crops' (crops, 2) top and left, given the (2,) rows and columns that a crop leaves over."""
        if self.crops:
            return host_generator(self.seed, place).integers(0, spare + 1, (self.crops, 2))
        return spare[None] // 2

    def facts(self, opened: LoadedImage, corners: np.ndarray) -> np.ndarray:
        """Returns (crops, 6) rows of `Variants.time_ids`."""
        width, height = opened.size
        return np.array([(height, width, *corner, self.height, self.width) for corner in corners], np.float32)

    def cut(
        self, plane: Image.Image, cover: tuple[int, int], corners: np.ndarray, resample: Image.Resampling
    ) -> np.ndarray:
        """Cuts (augmentations, height, width, ...) out of an image or mask that is resized to (width, height) `cover`.

        A long strip, which would be gigabytes when resized, is cut before.
        """
        if math.prod(cover) <= MAX_COVER:
            whole = np.asarray(plane.resize(cover, resample))
            crops = [whole[top : top + self.height, left : left + self.width] for top, left in corners]
        else:
            crops = [np.asarray(self.crop(plane, cover, corner, resample)) for corner in corners]
        stacked = np.stack(crops)
        return np.concatenate([stacked, stacked[:, :, ::-1]]) if self.flip else stacked

    def crop(
        self, plane: Image.Image, cover: tuple[int, int], corner: np.ndarray, resample: Image.Resampling
    ) -> Image.Image:
        """Resizes the part of an image or mask that a crop at `corner` (top, left) of its `cover` shows."""
        top, left = corner.tolist()
        across, down = plane.width / cover[0], plane.height / cover[1]  # pixels of the image in one of the cover
        right = min(plane.width, (left + self.width) * across)
        bottom = min(plane.height, (top + self.height) * down)
        return plane.resize((self.width, self.height), resample, (left * across, top * down, right, bottom))


def load_augmentations(images: list[ImageFile], framing: CropSpec, masked: bool = False) -> Iterator[Augmentations]:
    """Yields each image's augmentations, in order, with their masks if `masked`."""
    for image in images:
        yield framing.apply(load_image(image.path, masked), image.index)
