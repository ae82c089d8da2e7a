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


def enlarge(pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Returns pictures at one whole multiple of their sizes, the widest at least MIN_TILE wide, without smoothing."""
    scale = -(-MIN_TILE // max(pixels.shape[1] for pixels in pictures))
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
