"""The variants of a picture that the model sees: covered, cropped and mirrored, with SDXL's facts about each."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxbooth.data.images import Opened, Picture, open_picture
from jaxbooth.prng import host_generator


class Variants(NamedTuple):
    """The variants of one picture.

    Attributes:
        pixels: (variants, height, width, 3) uint8.
        sizes: (variants, 6) float32, each row in the order of SDXL's `time_ids`: height and width of the upright file,
            top and left of the crop in the resized picture (mirrored first where the variant is), target height and
            width.
        masks: (variants, height, width) float32, 1 where the picture is learned and 0 where it is ignored.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray


class Framing(NamedTuple):
    """Which variants of a picture are kept: crops times mirrorings.

    Attributes:
        height, width: of every variant, in pixels.
        crops: 0 for one center crop, else that many random ones.
        flip: each crop also mirrored.
        seed: decides the random crops, together with the picture's place in the folder.
    """

    height: int
    width: int
    crops: int
    flip: bool
    seed: int

    def apply(self, opened: Opened, place: int) -> Variants:
        """Returns the variants of picture number `place` of its folder: the crops, then their mirror images if `flip`.

        The picture keeps its shape and is resized to just cover (height, width). Without a mask, all of it is learned.
        """
        image, mask = opened
        scale = max(self.height / image.height, self.width / image.width)
        cover = max(self.width, round(image.width * scale)), max(self.height, round(image.height * scale))
        pixels = np.asarray(image.resize(cover, Image.Resampling.LANCZOS))
        if mask is None:
            weights = np.ones(pixels.shape[:2], np.float32)
        else:
            weights = np.asarray(mask.resize(cover, Image.Resampling.BOX), np.float32) / 255
        spare = np.array(pixels.shape[:2]) - (self.height, self.width)
        corners = self.corners(spare, place)
        facts = [self.facts(image, corners)]
        if self.flip:
            facts.append(self.facts(image, np.stack([corners[:, 0], spare[1] - corners[:, 1]], 1)))
        return Variants(self.cut(pixels, corners), np.concatenate(facts), self.cut(weights, corners))

    def corners(self, spare: np.ndarray, place: int) -> np.ndarray:
        """Returns the crops' (crops, 2) top and left, given the (2,) rows and columns that a crop leaves over."""
        if self.crops:
            return host_generator(self.seed, place).integers(0, spare + 1, (self.crops, 2))
        return spare[None] // 2

    def facts(self, image: Image.Image, corners: np.ndarray) -> np.ndarray:
        """Returns (crops, 6) rows of `Variants.sizes`."""
        return np.array(
            [(image.height, image.width, *corner, self.height, self.width) for corner in corners], np.float32
        )

    def cut(self, plane: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Cuts (variants, height, width, ...) out of a (rows, columns, ...) picture or mask."""
        crops = np.stack([plane[top : top + self.height, left : left + self.width] for top, left in corners])
        return np.concatenate([crops, crops[:, :, ::-1]]) if self.flip else crops


def framed(pictures: list[Picture], framing: Framing, masked: bool = False) -> Iterator[Variants]:
    """Yields each picture's variants, in order, with their masks if `masked`."""
    for picture in pictures:
        yield framing.apply(open_picture(picture.path, masked), picture.place)
