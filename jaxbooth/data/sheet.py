"""Labelled grids of pictures: contact sheets and sample grids."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_TILE = 128  # pixels; smaller pictures are enlarged so that labels stay readable
GAP = 6
LINE = 14


def enlarge(pixels: np.ndarray) -> Image.Image:
    """Returns a picture at a whole multiple of its size, at least MIN_TILE wide, without smoothing."""
    image = Image.fromarray(pixels)
    scale = -(-MIN_TILE // image.width)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def labelled(pixels: np.ndarray, label: str, lines: int) -> Image.Image:
    """Returns one tile: the picture above at most `lines` lines of its label."""
    picture = enlarge(pixels)
    tile = Image.new("RGB", (picture.width, picture.height + lines * LINE), "white")
    tile.paste(picture)
    wrapped = textwrap.wrap(label, max(8, picture.width // 6)) or [""]
    shown = [*wrapped[: lines - 1], " ".join(wrapped[lines - 1 :])] if lines else []
    draw = ImageDraw.Draw(tile)
    for index, text in enumerate(shown):
        draw.text((2, picture.height + index * LINE), text, "black", ImageFont.load_default(11))
    return tile


def sheet(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int, lines: int = 2) -> Image.Image:
    """Lays pictures of one size out in rows of `columns`.

    Args:
        pictures: each (h, w, 3) uint8.
        labels: one for each picture.
        lines: lines of text under each picture; 0 for none.
    """
    tiles = [labelled(pixels, label, lines) for pixels, label in zip(pictures, labels, strict=True)]
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    rows = -(-len(tiles) // columns)
    out = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for index, tile in enumerate(tiles):
        out.paste(tile, (GAP + index % columns * width, GAP + index // columns * height))
    return out
