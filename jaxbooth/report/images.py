"""Images embedded in the page: shrunk WebP, and pixel art as it is."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.data.decoding import decode
from jaxbooth.errors import UserError

PIXEL_ART = 128  # pixels; images up to this size keep every pixel, and are scaled up without smoothing
WEBP_LIMIT = 16383  # pixels of a side
SIZES = ((512, 82), (448, 80), (384, 78), (320, 76), (256, 74), (192, 72), (128, 66))  # longest side, quality
PROBES = 6  # images whose sizes in bytes stand for all


class EmbeddedImage(NamedTuple):
    """An image in the page.

    Attributes:
        uri: a data URI.
        width, height: of the embedded image, in pixels.
        pixelated: whether it is scaled up without smoothing.
    """

    uri: str
    width: int
    height: int
    pixelated: bool


class EmbeddedSize(NamedTuple):
    """How images are embedded: the longest side in pixels, and WebP's quality."""

    longest: int
    quality: int


def read_image(path: Path) -> Image.Image | None:
    """Reads an image in RGB; None if it is missing or damaged."""
    try:
        return decode(path, "white").image
    except UserError:
        return None


def encode_webp(image: Image.Image, size: EmbeddedSize) -> tuple[bytes, Image.Image]:
    """Returns an RGB image as WebP, and the image that was encoded: shrunk, or untouched if it is pixel art."""
    small = image.copy()
    buffer = io.BytesIO()
    if is_pixel_art(image):
        small.save(buffer, "WEBP", lossless=True, method=4)
    else:
        longest = min(size.longest, WEBP_LIMIT)
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        small.save(buffer, "WEBP", quality=size.quality, method=4)
    return buffer.getvalue(), small


def is_pixel_art(image: Image.Image) -> bool:
    """Whether every pixel of an image counts."""
    return max(image.size) <= PIXEL_ART


def embed(image: Image.Image, size: EmbeddedSize) -> EmbeddedImage:
    """Embeds an image in the page."""
    content, small = encode_webp(image, size)
    uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return EmbeddedImage(uri, small.width, small.height, is_pixel_art(image))


def fitting_size(probes: Sequence[Image.Image], count: int, budget: int, largest: int = SIZES[0][0]) -> EmbeddedSize:
    """Returns the largest size at which `count` images like `probes` take at most `budget` bytes, or the smallest.

    Args:
        largest: the longest side that is allowed, in pixels.
    """
    sizes = [EmbeddedSize(*size) for size in SIZES if size[0] <= largest]
    if not probes or is_pixel_art(probes[0]):
        return sizes[0]
    step = max(1, len(probes) // PROBES)
    few = probes[::step][:PROBES]
    for size in sizes:
        mean_bytes = sum(len(encode_webp(image, size)[0]) for image in few) / len(few)
        if mean_bytes * count <= budget:
            return size
    return sizes[-1]
