"""Sample grids, taken apart into images and laid out by prompt, so that several runs stand side by side."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from jaxbooth.data.image_grid import cut
from jaxbooth.errors import UserError
from jaxbooth.report.curves import evenly_spread
from jaxbooth.report.images import EmbeddedImage, EmbeddedSize, embed, fitting_size
from jaxbooth.storage.text import read_bytes

BUDGET = 9_000_000  # bytes of WebP for all sample images of a page
MAX_IMAGES = 1500
MAX_STEPS = 60
WHOLE = 3  # times as long as a single image is the longest side of a sheet that stays whole


@dataclass(frozen=True)
class SampleGrid:
    """The sample grid of one step.

    Attributes:
        prompts: of its rows.
        settings: what else the file says of itself.
    """

    step: int
    path: Path
    prompts: tuple[str, ...]
    settings: dict[str, str]


class GridTiles(NamedTuple):
    """A grid taken apart: the images of each prompt, or the whole sheet where its layout is an unknown one."""

    rows: dict[str, list[Image.Image]]
    whole: bool


def read_grid(path: Path) -> SampleGrid | None:
    """Reads a grid's text chunks, or returns None where the file is damaged or none."""
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as image:
            image.load()
            facts = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, on damaged files
        return None
    step = facts.pop("step", path.stem.removeprefix("step_"))
    is_step = re.fullmatch(r"[0-9]{1,18}", step)
    return SampleGrid(int(step), path, parse_prompts(facts.pop("prompts", "")), facts) if is_step else None


def parse_prompts(text: str) -> tuple[str, ...]:
    """Returns the prompts that a text chunk lists."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def split_tiles(grid: SampleGrid, side: int | None) -> GridTiles:
    """Takes a grid apart.

    Args:
        side: of its images, in pixels.
    """
    with Image.open(io.BytesIO(grid.path.read_bytes())) as image:
        sheet = image.convert("RGB")
    rows = cut(sheet, len(grid.prompts), side) if side and grid.prompts else None
    if rows is None:
        return GridTiles({" / ".join(grid.prompts) or "samples": [sheet]}, whole=True)
    return GridTiles(dict(zip(grid.prompts, rows, strict=True)), whole=False)


def thin_grids(runs: Sequence[Sequence[SampleGrid]]) -> list[list[SampleGrid]]:
    """Thins the grids of each run evenly, to as many as a page can hold; the first and the last are always there."""
    rows = max((len(grid.prompts) for grids in runs for grid in grids), default=1)
    most = min(MAX_STEPS, max(2, MAX_IMAGES // (max(1, len(runs)) * max(1, rows) * 4)))
    return [[grids[index] for index in evenly_spread(len(grids), most)] for grids in runs]


def choose_size(grids: Sequence[Sequence[SampleGrid]], sides: Sequence[int | None]) -> EmbeddedSize:
    """Returns how large the sample images of all runs can be, judged by each run's last grid."""
    probes, count = [], 0
    for each, side in zip(grids, sides, strict=True):
        if each:
            tiles = split_tiles(each[-1], side)
            last = [image for row in tiles.rows.values() for image in row]
            probes += last
            count += len(each) * len(last) * (WHOLE**2 if tiles.whole else 1)
    return fitting_size(probes, count, BUDGET)


def embed_grids(
    grids: Sequence[SampleGrid], side: int | None, size: EmbeddedSize
) -> dict[str, list[list[EmbeddedImage]]]:
    """Returns prompt -> the images at each of the grids; a prompt that was not drawn there has none."""
    found: dict[str, list[list[EmbeddedImage]]] = {}
    for number, grid in enumerate(grids):
        tiles = split_tiles(grid, side)
        own = EmbeddedSize(size.longest * WHOLE, size.quality) if tiles.whole else size
        for prompt, images in tiles.rows.items():
            found.setdefault(prompt, [[] for _ in grids])[number] = [embed(each, own) for each in images]
    return found


def sampled_with(grid: SampleGrid) -> dict[str, Any]:
    """Returns what made a grid's images, in words; what is empty is left out."""
    return {key.replace("_", " "): value for key, value in grid.settings.items() if value}
