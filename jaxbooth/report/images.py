"""Images inside of a page: small, and small pixel art kept as it is."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.data.decoding import decode
from jaxbooth.errors import UserError

PIXEL_ART = 128  # pixels; images up to this size keep every pixel, and are scaled up without smoothing
FORMAT_LIMIT = 16383  # pixels, of WebP
SIZES = ((512, 82), (448, 80), (384, 78), (320, 76), (256, 74), (192, 72), (128, 66))  # longest side, quality
PROBES = 6  # images that stand for all when the sizes are chosen


class EmbeddedImage(NamedTuple):
    """An image in the page.

    Attributes:
        uri: a data URI.
        width, height: of the embedded image, in pixels.
        crisp: whether to scale it up without smoothing.
    """

    uri: str
    width: int
    height: int
    crisp: bool


class EmbeddedSize(NamedTuple):
    """How images are embedded: the longest side in pixels, and WebP's quality."""

    longest: int
    quality: int


def read_image(path: Path) -> Image.Image | None:
    """Reads an image in RGB, or returns None where there is none or it is damaged."""
    try:
        return decode(path, "white").image
    except UserError:
        return None


def encode_webp(image: Image.Image, size: EmbeddedSize) -> tuple[bytes, Image.Image]:
    """Returns an RGB image as WebP, and what was encoded: shrunk, or untouched where it is pixel art."""
    small, buffer = image.copy(), io.BytesIO()
    if is_pixel_art(image):
        small.save(buffer, "WEBP", lossless=True, method=4)
    else:
        longest = min(size.longest, FORMAT_LIMIT)
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        small.save(buffer, "WEBP", quality=size.quality, method=4)
    return buffer.getvalue(), small


def is_pixel_art(image: Image.Image) -> bool:
    """Whether every pixel of an image counts."""
    return max(image.size) <= PIXEL_ART


def embed(image: Image.Image, size: EmbeddedSize) -> EmbeddedImage:
    """Makes an image part of the page."""
    content, small = encode_webp(image, size)
    uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return EmbeddedImage(uri, small.width, small.height, is_pixel_art(image))


def fitting_size(probes: Sequence[Image.Image], count: int, budget: int, largest: int = SIZES[0][0]) -> EmbeddedSize:
    """Returns the largest size at which `count` images like `probes` take at most `budget` bytes, or the smallest.

    Args:
        largest: longest side to begin with.
    """
    sizes = [EmbeddedSize(*rung) for rung in SIZES if rung[0] <= largest]
    if not probes or is_pixel_art(probes[0]):
        return sizes[0]
    step = max(1, len(probes) // PROBES)
    chosen = probes[::step][:PROBES]
    for size in sizes:
        if sum(len(encode_webp(image, size)[0]) for image in chosen) / len(chosen) * count <= budget:
            return size
    return sizes[-1]
