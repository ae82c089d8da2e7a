"""The single images of sample grids, cut once, and named by step, row and column."""

import io
import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.data.image_grid import split_grid
from jaxbooth.errors import UserError
from jaxbooth.report.images import PIXEL_ART, is_pixel_art
from jaxbooth.report.sample_grids import parse_prompts
from jaxbooth.storage.text import read_bytes
from jaxbooth.ui.file_cache import FileCache, version_of
from jaxbooth.ui.photos import is_bomb
from jaxbooth.ui.roots import NotFound

BUDGET = 96 * 2**20  # bytes of images that are kept
THUMBNAILS_BUDGET = 16 * 2**20
MAX_FILE = 256 * 2**20  # bytes of a grid
QUALITY = 92
THUMBNAIL = 144  # pixels of a side: twice what is shown


class Tile(NamedTuple):
    """One image, encoded.

    Attributes:
        width, height: in pixels.
    """

    content: bytes
    media_type: str
    width: int
    height: int

    @property
    def is_pixel_art(self) -> bool:
        """Whether it is scaled up without smoothing."""
        return max(self.width, self.height) <= PIXEL_ART


class Tiles(NamedTuple):
    """The images of a grid.

    Attributes:
        version: of the file; part of the images' addresses, so that browsers may keep them.
        prompts: of the rows.
        rows: the images of each prompt; the whole grid, if its layout is unknown.
        settings: how they were generated.
    """

    version: int
    prompts: tuple[str, ...]
    rows: list[list[Tile]]
    settings: dict[str, str]


class Cut(NamedTuple):
    """A grid's images before they are encoded; see `Tiles`."""

    prompts: tuple[str, ...]
    rows: list[list[Image.Image]]
    settings: dict[str, str]


def cut_grid(path: Path, side: int | None) -> Cut:
    """Cuts a grid.

    Args:
        side: of its images in pixels, if that is known.

    Raises:
        NotFound: it cannot be read.
    """
    try:
        content = read_bytes(path, MAX_FILE)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if is_bomb(image.width * image.height, len(content)):
                raise NotFound(str(path))
            whole = image.convert("RGB")
            chunks = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, on damaged files
        raise NotFound(str(path)) from None
    prompts = parse_prompts(chunks.pop("prompts", ""))
    rows = split_grid(whole, len(prompts), side) if side and prompts else None
    if rows is None:
        prompts, rows = (" / ".join(prompts) or "samples",), [[whole]]
    return Cut(prompts, rows, chunks)


def encode_tile(image: Image.Image) -> Tile:
    """Encodes an image as a browser reads it: pixel art as it is."""
    if is_pixel_art(image):
        return Tile(encode(image, "PNG"), "image/png", *image.size)
    return Tile(encode(image, "JPEG"), "image/jpeg", *image.size)


def encode(image: Image.Image, format: str) -> bytes:
    """Encodes an image; colours keep their resolution in a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": QUALITY, "subsampling": 0} if format == "JPEG" else {}))
    return buffer.getvalue()


def shrink(image: Image.Image) -> Image.Image:
    """Returns a thumbnail."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if is_pixel_art(image) else Image.Resampling.LANCZOS)


class TileCache:
    """The images of grids that open pages show."""

    def __init__(self) -> None:
        self._tiles: FileCache[Tiles] = FileCache(size_of, BUDGET)
        self._thumbnails: FileCache[bytes] = FileCache(len, THUMBNAILS_BUDGET)

    def get(self, path: Path, side: int | None) -> Tiles:
        """Returns the images of a grid; `side` is that of its images in pixels, if it is known.

        Raises:
            NotFound: there is none, or it is damaged.
        """

        def make() -> Tiles:
            version, cut = version_of(path), cut_grid(path, side)
            rows = [[encode_tile(image) for image in row] for row in cut.rows]
            return Tiles(version, cut.prompts, rows, cut.settings)

        return self._tiles.get(path, side, make)

    def thumbnail(self, path: Path, side: int | None) -> bytes:
        """Returns a small JPEG of a grid's first image.

        Raises:
            NotFound: there is none, or it is damaged.
        """
        return self._thumbnails.get(path, side, lambda: encode(shrink(cut_grid(path, side).rows[0][0]), "JPEG"))


def size_of(tiles: Tiles) -> int:
    """Returns the bytes of a grid's images."""
    return sum(len(tile.content) for row in tiles.rows for tile in row)


def grid_steps(folder: Path) -> list[int]:
    """Returns the steps of the sample grids in a folder, in order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted({int(step_of(name)) for name in names if is_grid_name(name)})


def is_grid_name(name: str) -> bool:
    """Whether a file is a sample grid's, such as `step_000250.png`."""
    step = step_of(name)
    return name == f"step_{step}.png" and step.isascii() and step.isdecimal() and 6 <= len(step) <= 18


def step_of(name: str) -> str:
    """Returns the part of a sample grid's name that is its step."""
    return name.removeprefix("step_").removesuffix(".png")
