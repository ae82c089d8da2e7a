"""Decoding one image file: which formats, how large, which way up, in which colors.

Metadata never decides whether pixels can be read: a file that cannot be decoded is tried again without what is not
pixels, see `containers.py`.
"""

import io
import stat
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxbooth.data.color import ToSRGB, profile_transform
from jaxbooth.data.containers import MAX_REPAIRED, png_metadata_follows_pixels, without_metadata
from jaxbooth.errors import UserError
from jaxbooth.storage.remote import is_local

IMAGE_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "AVIF",
    "BMP",
    "GIF",
    "TIFF",
)  # no EPS, PDF or PSD, whose readers do more than read
HEIF = "HEIF"  # pillow-heif's name of its format
MAX_PIXELS = 2**28  # 268 million: a camera's 200 megapixels, and what WebP can hold
WHOLE_PIXELS = 2**27  # beyond, an image is halved as it is decoded
STRIP = 512  # rows that are halved at once
DEEP = ("I", "F")  # 32-bit samples, whose range nothing tells
MAX_REASON = 160  # characters of Pillow's message
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
ALPHA_MODES = ("RGBA", "LA", "PA")


class ImageHeader(NamedTuple):
    """What a file says of its image before its pixels.

    Attributes:
        size: width and height, upright.
    """

    size: tuple[int, int]
    has_alpha: bool


class Decoded(NamedTuple):
    """A decoded image, upright.

    Attributes:
        image: RGB, transparency on a ground color.
        alpha: the alpha channel ("L"), or None.
        size: width and height of the file; those of `image` are half of it above WHOLE_PIXELS.
    """

    image: Image.Image
    alpha: Image.Image | None
    size: tuple[int, int]


def heif_is_readable() -> bool:
    """Registers the HEIC reader when pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener  # ty: ignore[import-not-found] (an optional extra)
    except ImportError:
        return False
    register_heif_opener()
    return True


def read_header(path: Path) -> ImageHeader:
    """Reads an image's size, and whether it has an alpha channel.

    Pixels are decoded only where the header does not tell: the file is damaged, or has metadata behind its pixels.

    Raises:
        UserError: see `decode`.
    """
    try:
        with open_regular(path) as content, warnings.catch_warnings(), pixel_limit():
            warnings.simplefilter("ignore")  # Pillow's, on metadata
            with Image.open(content, formats=readable_formats()) as file:
                is_turned = header_orientation(file) in SIDEWAYS
                size = file.size[::-1] if is_turned else file.size
                header = ImageHeader(size, has_alpha(file))
            if not png_metadata_follows_pixels(content):
                return header
    except Exception:  # `decode` may repair the file, and says what is wrong with it
        pass
    _, alpha, size = decode(path, "white")
    return ImageHeader(size, alpha is not None)


def stored_size(path: Path) -> tuple[int, int]:
    """Returns the width and height that a file's header says, not turned; no pixel is decoded.

    Raises:
        UserError: it is no image of a known format, or has more than MAX_PIXELS.
    """
    try:
        with open_regular(path) as content, warnings.catch_warnings(), pixel_limit():
            warnings.simplefilter("ignore")  # Pillow's, on metadata
            with Image.open(content, formats=readable_formats()) as file:
                return file.size
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller, or remove it.") from None
    except Exception:  # decoders raise errors of every kind on damaged files
        raise UserError(f"{path} is no image of a known format; replace it or remove it.") from None


def decode(path: Path, ground: str, in_srgb: bool = True) -> Decoded:
    """Decodes a file's first image.

    Args:
        ground: color under what is transparent.
        in_srgb: convert the colors of an embedded profile; a mask's values are no colors, and stay as stored.

    Raises:
        UserError: the file is no image of a known format, is damaged, or has more than MAX_PIXELS.
    """
    try:
        with open_regular(path) as content, warnings.catch_warnings(), pixel_limit():
            warnings.simplefilter("ignore")  # Pillow's, on metadata
            return decode_or_repair(content, path, ground, in_srgb)
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller, or remove it.") from None
    except UserError:
        raise
    except UnidentifiedImageError:
        reason = "it is no image of a known format"
    except Exception as error:  # decoders raise errors of every kind on damaged files
        reason = (str(error) or type(error).__name__)[:MAX_REASON]
    raise UserError(f"{path} cannot be decoded ({reason}); replace it or remove it.")


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file that is no FIFO or device; opening those would wait for ever.

    Raises:
        UserError: it is one.
    """
    if is_local(path) and not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a file; put an image in its place, or remove it.")
    return path.open("rb")


def readable_formats() -> tuple[str, ...]:
    """Returns Pillow's names of the formats that can be decoded here."""
    return (*IMAGE_FORMATS, HEIF) if heif_is_readable() else IMAGE_FORMATS


@contextmanager
def pixel_limit() -> Generator[None]:
    """Sets Pillow's own limit, beyond twice of which it refuses, to MAX_PIXELS."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode_or_repair(content: IO[bytes], path: Path, ground: str, in_srgb: bool) -> Decoded:
    """Decodes a file as it is, or else without its metadata.

    Raises:
        Exception: what Pillow raised on the file as it is.
    """
    try:
        return decode_stream(content, path, ground, in_srgb)
    except Image.DecompressionBombError:
        raise
    except Exception:  # see `decode`
        content.seek(0)
        repaired = without_metadata(content.read(MAX_REPAIRED + 1))
        if repaired is not None:
            try:
                return decode_stream(io.BytesIO(repaired), path, ground, in_srgb)
            except Exception:  # the first reason is the one to tell
                pass
        raise


def decode_stream(content: IO[bytes], path: Path, ground: str, in_srgb: bool) -> Decoded:
    """Decodes an open file; `path` is what warnings name."""
    with Image.open(content, formats=readable_formats()) as file:
        size, is_large = file.size, file.size[0] * file.size[1] > WHOLE_PIXELS
        if is_large:
            file.draft(None, (size[0] // 2, size[1] // 2))  # a JPEG is decoded at half its size; others stay whole
        halve = is_large and file.size == size
        file.load()
        if file.mode in DEEP:
            raise ValueError("its samples have 32 bits; save it with 8 or 16")
        to_srgb = profile_transform(file, path) if in_srgb else None
        image, alpha = flatten_at_half_size(file, ground, to_srgb) if halve else flatten(file, ground, to_srgb)
        orientation = orientation_of(file)
    if orientation in TRANSPOSES:
        image = image.transpose(TRANSPOSES[orientation])
        alpha = alpha and alpha.transpose(TRANSPOSES[orientation])
        size = size[::-1] if orientation in SIDEWAYS else size
    return Decoded(image, alpha, size)


def orientation_of(file: Image.Image) -> int:
    """Returns the EXIF orientation of a file; 1, which is upright, where it cannot be read."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, of which Pillow raises errors of every kind
        return 1


def header_orientation(file: Image.Image) -> int:
    """Returns what `orientation_of` will say once the pixels are decoded, of what precedes them."""
    if file.format == "TIFF":  # Pillow turns it as it decodes it, and knows its upright size before
        return 1
    if file.format != "PNG":  # whose own method would decode it
        return orientation_of(file)
    try:
        return int(Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `orientation_of`
        return 1


def has_alpha(file: Image.Image) -> bool:
    """Whether some pixels may be transparent; 16-bit grey loses its one transparent value when it is decoded."""
    return file.mode in ALPHA_MODES or ("transparency" in file.info and not file.mode.startswith("I;16"))


def flatten(image: Image.Image, ground: str, to_srgb: ToSRGB | None) -> tuple[Image.Image, Image.Image | None]:
    """Returns an image in RGB with transparency on a ground color, and its alpha channel if it has one."""
    image, alpha = to_8_bits(image), None
    if has_alpha(image):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if to_srgb:
            image = to_srgb(image)
            image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    elif to_srgb:
        image = to_srgb(image)
    return image.convert("RGB"), alpha


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, where Pillow would clip it; other images stay as they are."""
    if not image.mode.startswith("I;16"):
        return image
    grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    white_is_zero = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0  # of a TIFF
    return ImageOps.invert(grey) if white_is_zero else grey


def flatten_at_half_size(
    image: Image.Image, ground: str, to_srgb: ToSRGB | None
) -> tuple[Image.Image, Image.Image | None]:
    """Does what `flatten` does at half the size, strip by strip, so that the image is in memory once only."""
    half = (image.width + 1) // 2, (image.height + 1) // 2
    whole, whole_alpha = Image.new("RGB", half), None
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        pixels, alpha = flatten(strip, ground, to_srgb)
        whole.paste(pixels.reduce(2), (0, top // 2))
        if alpha:
            whole_alpha = whole_alpha or Image.new("L", half)
            whole_alpha.paste(alpha.reduce(2), (0, top // 2))
    return whole, whole_alpha
