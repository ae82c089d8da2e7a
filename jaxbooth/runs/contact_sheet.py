"""The contact sheet: what the model will see of the subjects' images."""

import numpy as np
from PIL import Image

from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info
from jaxbooth.data.image_grid import image_grid, shrink
from jaxbooth.data.images import ImageFile
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.inputs import RunInputs, crop_spec
from jaxbooth.storage.files import write_png

COLUMNS = 5
MAX_TILES = 200
TILE_SIDE = 256  # pixels of a tile's longer side


def contact_sheet(config: Config, inputs: RunInputs, images: TrainingImages) -> Image.Image:
    """Shows exactly what the model will see of the subjects: crops, transparency, orientation, masks, captions.

    The sheet holds the first MAX_TILES augmentations. Every image is decoded all the same, so that none turns out
    damaged later.
    """
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    total = 0
    for shape, subjects in inputs.shapes.items():
        for file in (file for files in subjects for file in files):
            augmentations = images.load(file, crop_spec(config, shape))
            total += len(augmentations.pixels)
            for pixels, mask in zip(augmentations.pixels, augmentations.masks, strict=True):
                if len(tiles) < MAX_TILES:
                    tiles.append(shrink(shade(pixels, mask), TILE_SIDE))
                    captions.append(caption_label(file))
    if total > len(tiles):
        info(f"the contact sheet shows {len(tiles)} of {total} augmentations and leaves {total - len(tiles)} out")
    return image_grid(tiles, captions, min(COLUMNS, len(tiles)))


def caption_label(file: ImageFile) -> str:
    """Returns an image's caption, and how many variants of it there are."""
    distinct = len(set(file.captions))
    return file.caption if distinct == 1 else f"{file.caption} ({distinct} variants)"


def shade(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darkens what a mask leaves out."""
    return (pixels * (0.25 + 0.75 * mask[..., None])).astype(np.uint8)


def write_contact_sheet(run: RunFolder, image: Image.Image) -> None:
    """Saves the contact sheet."""
    if is_writer():
        write_png(run.contact_sheet, image, {})
    info(f"contact sheet: {run.contact_sheet}")
