"""Labelled grids of pictures: contact sheets and sample grids."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_TILE = 128  # pixels; smaller pictures are enlarged so that labels stay readable
GAP = 6
LINE = 14


def shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Returns a picture whose longer side has at most `longest` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


def magnification(width: int) -> int:
    """Returns the whole multiple at which pictures are shown, the widest of which is `width` pixels wide."""
    return -(-MIN_TILE // width)


def enlarge(pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Returns pictures at one whole multiple of their sizes, the widest at least MIN_TILE wide, without smoothing."""
    scale = magnification(max(pixels.shape[1] for pixels in pictures))
    return [Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)) for pixels in pictures]


def labelled(picture: Image.Image, label: str, width: int, lines: int) -> Image.Image:
    """Returns one tile: the picture above at most `lines` lines of its label, which may be `width` pixels wide."""
    tile = Image.new("RGB", (width, picture.height + lines * LINE), "white")
    tile.paste(picture)
    wrapped = textwrap.wrap(label, max(8, width // 6)) or [""]
    shown = [*wrapped[: lines - 1], " ".join(wrapped[lines - 1 :])] if lines else []
    draw = ImageDraw.Draw(tile)
    for index, text in enumerate(shown):
        draw.text((2, picture.height + index * LINE), text, "black", ImageFont.load_default(11))
    return tile


def sheet(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int, lines: int = 2) -> Image.Image:
    """Lays pictures out in rows of `columns`, in cells that have room for the largest.

    Args:
        pictures: each (h, w, 3) uint8, of its own size.
        labels: one for each picture.
        lines: lines of text under each picture; 0 for none.
    """
    shown = enlarge(pictures)
    widest = max(picture.width for picture in shown)
    tiles = [labelled(picture, label, widest, lines) for picture, label in zip(shown, labels, strict=True)]
    width, height = widest + GAP, max(tile.height for tile in tiles) + GAP
    rows = -(-len(tiles) // columns)
    out = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for index, tile in enumerate(tiles):
        out.paste(tile, (GAP + index % columns * width, GAP + index // columns * height))
    return out


def cut(grid: Image.Image, rows: int, side: int, lines: int = 2) -> list[list[Image.Image]] | None:
    """Takes a sheet of square pictures apart again: the inverse of `sheet`, pixel for pixel.

    Args:
        rows: how many rows the sheet has.
        side: of the pictures, in pixels.
        lines: lines of text under each picture.

    Returns:
        the pictures of each row, or None if the sheet is not laid out so.
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
