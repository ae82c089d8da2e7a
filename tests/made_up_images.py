"""Making image files and pixels for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxbooth.data.images import LoadedImage

CASES = Path(__file__).parent / "cases"  # folders of images as people had them


def put(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def caption_list(folder: Path, *entries: dict) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def opened(pixels: np.ndarray, mask: np.ndarray | None = None) -> LoadedImage:
    return LoadedImage(Image.fromarray(pixels), None if mask is None else Image.fromarray(mask))


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A gradient that survives lossy codecs."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, 90)], -1).astype(np.uint8)
