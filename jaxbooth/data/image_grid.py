"""Labelled grids of images: contact sheets and sample grids."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_TILE = 128  # pixels; smaller images are enlarged so that labels stay readable
GAP = 6
LINE = 14


def shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Returns an image whose longer side has at most `longest` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


def magnification(width: int) -> int:
    """Returns the whole multiple at which images are shown, the widest of which is `width` pixels wide."""
    return -(-MIN_TILE // width)


def enlarge(images: Sequence[np.ndarray]) -> list[Image.Image]:
    """Returns images at one whole multiple of their sizes, the widest at least MIN_TILE wide, without smoothing."""
    scale = magnification(max(pixels.shape[1] for pixels in images))
    return [Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)) for pixels in images]


def make_tile(image: Image.Image, label: str, width: int, lines: int) -> Image.Image:
    """Returns one tile: the image above at most `lines` lines of its label, which may be `width` pixels wide."""
    tile = Image.new("RGB", (width, image.height + lines * LINE), "white")
    tile.paste(image)
    wrapped = textwrap.wrap(label, max(8, width // 6)) or [""]
    shown = [*wrapped[: lines - 1], " ".join(wrapped[lines - 1 :])] if lines else []
    draw = ImageDraw.Draw(tile)
    for index, text in enumerate(shown):
        draw.text((2, image.height + index * LINE), text, "black", ImageFont.load_default(11))
    return tile


def image_grid(images: Sequence[np.ndarray], labels: Sequence[str], columns: int, lines: int = 2) -> Image.Image:
    """Lays images out in rows of `columns`, in cells that have room for the largest.

    Args:
        images: each (h, w, 3) uint8, of its own size.
        labels: one for each image.
        lines: lines of text under each image; 0 for none.
    """
    shown = enlarge(images)
    widest = max(image.width for image in shown)
    tiles = [make_tile(image, label, widest, lines) for image, label in zip(shown, labels, strict=True)]
    width, height = widest + GAP, max(tile.height for tile in tiles) + GAP
    rows = -(-len(tiles) // columns)
    out = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for index, tile in enumerate(tiles):
        out.paste(tile, (GAP + index % columns * width, GAP + index // columns * height))
    return out


def split_grid(grid: Image.Image, rows: int, side: int, lines: int = 2) -> list[list[Image.Image]] | None:
    """Splits a grid of square images again: the inverse of `image_grid`, pixel for pixel.

    Args:
        rows: how many rows the grid has.
        side: of the images, in pixels.
        lines: lines of text under each image.

    Returns:
        the images of each row, or None if the grid is not laid out so.
    """
    scale, pixels = magnification(side), np.asarray(grid.convert("RGB"))
    width, height = side * scale + GAP, side * scale + lines * LINE + GAP
    columns = (grid.width - GAP) // width
    if columns < 1 or grid.size != (columns * width + GAP, rows * height + GAP):
        return None
    lefts, tops = (range(GAP, count * size + GAP, size) for count, size in ((columns, width), (rows, height)))
    extent = side * scale
    return [
        [Image.fromarray(pixels[top : top + extent : scale, left : left + extent : scale]) for left in lefts]
        for top in tops
    ]
