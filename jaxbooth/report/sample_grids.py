"""Splits sample grids into their images, arranged by prompt, so that several runs stand side by side."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.data.image_grid import split_grid
from jaxbooth.errors import UserError
from jaxbooth.report.curves import evenly_spread
from jaxbooth.report.images import EmbeddedImage, EmbeddedSize, embed, fitting_size
from jaxbooth.storage.text import read_bytes

BUDGET = 9_000_000  # bytes of WebP for all sample images of a page
MAX_IMAGES = 1500
MAX_STEPS = 60
WHOLE_SCALE = 3  # longest side of a grid that stays whole, relative to a single image's


@dataclass(frozen=True)
class SampleGrid:
    """The sample grid of one step.

    Attributes:
        prompts: of its rows.
        settings: the file's other text chunks.
    """

    step: int
    path: Path
    prompts: tuple[str, ...]
    settings: dict[str, str]


class GridTiles(NamedTuple):
    """The images of each prompt of a grid, or the whole grid if its layout is unknown."""

    rows: dict[str, list[Image.Image]]
    whole: bool


def read_grid(path: Path) -> SampleGrid | None:
    """Reads a grid's text chunks; None if the file is damaged or is no PNG."""
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as image:
            image.load()
            chunks = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, on damaged files
        return None
    step = chunks.pop("step", path.stem.removeprefix("step_"))
    if not re.fullmatch(r"[0-9]{1,18}", step):
        return None
    return SampleGrid(int(step), path, parse_prompts(chunks.pop("prompts", "")), chunks)


def parse_prompts(text: str) -> tuple[str, ...]:
    """Parses the prompts in a text chunk; none if it does not list any."""
    try:
        prompts = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, prompts)) if isinstance(prompts, list) else ()


def split_tiles(grid: SampleGrid, side: int | None) -> GridTiles:
    """Splits a grid into its images.

    Args:
        side: of its images, in pixels.
    """
    with Image.open(io.BytesIO(grid.path.read_bytes())) as image:
        whole = image.convert("RGB")
    rows = split_grid(whole, len(grid.prompts), side) if side and grid.prompts else None
    if rows is None:
        return GridTiles({" / ".join(grid.prompts) or "samples": [whole]}, whole=True)
    return GridTiles(dict(zip(grid.prompts, rows, strict=True)), whole=False)


def thin_grids(runs: Sequence[Sequence[SampleGrid]]) -> list[list[SampleGrid]]:
    """Returns as many grids of each run as a page can hold, evenly spread, the first and the last among them."""
    prompts = max((len(grid.prompts) for grids in runs for grid in grids), default=1)
    images_per_step = max(1, len(runs)) * max(1, prompts) * 4
    most = min(MAX_STEPS, max(2, MAX_IMAGES // images_per_step))
    return [[grids[index] for index in evenly_spread(len(grids), most)] for grids in runs]


def choose_size(grids: Sequence[Sequence[SampleGrid]], sides: Sequence[int | None]) -> EmbeddedSize:
    """Returns the size at which the sample images of all runs fit into the page, judged by each run's last grid."""
    probes: list[Image.Image] = []
    count = 0
    for run_grids, side in zip(grids, sides, strict=True):
        if run_grids:
            tiles = split_tiles(run_grids[-1], side)
            images = [image for row in tiles.rows.values() for image in row]
            probes += images
            count += len(run_grids) * len(images) * (WHOLE_SCALE**2 if tiles.whole else 1)
    return fitting_size(probes, count, BUDGET)


def embed_grids(
    grids: Sequence[SampleGrid], side: int | None, size: EmbeddedSize
) -> dict[str, list[list[EmbeddedImage]]]:
    """Returns prompt -> the images in each of the grids, none where a grid lacks the prompt."""
    by_prompt: dict[str, list[list[EmbeddedImage]]] = {}
    for index, grid in enumerate(grids):
        tiles = split_tiles(grid, side)
        tile_size = EmbeddedSize(size.longest * WHOLE_SCALE, size.quality) if tiles.whole else size
        for prompt, images in tiles.rows.items():
            by_prompt.setdefault(prompt, [[] for _ in grids])[index] = [embed(image, tile_size) for image in images]
    return by_prompt


def format_sampling(grid: SampleGrid) -> str:
    """Writes the settings that a grid's images were generated with, without empty ones."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in grid.settings.items() if value)
