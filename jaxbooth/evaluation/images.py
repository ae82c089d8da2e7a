"""The generated images of an evaluation, kept in a folder for each model, one PNG for each prompt and number.

Image i of a prompt depends on (seed, i) alone. Images that exist are not generated again: an interrupted evaluation
continues, and one with more images for each prompt adds to them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.console.progress import progress
from jaxbooth.data.decoding import decode
from jaxbooth.errors import UserError
from jaxbooth.metrics.prompts import Cell, EvalPrompt, by_prompt
from jaxbooth.pipeline import Pipeline
from jaxbooth.sharding import batch_shards
from jaxbooth.storage.files import refuse_existing, write_json, write_png
from jaxbooth.storage.text import read_json

MANIFEST = "generation.json"
BATCH_SIZE = 8  # images that each device generates at once, at most


def image_name(cell: Cell) -> str:
    """Returns the name of an image's file."""
    return f"{cell.prompt:03d}-{cell.image:03d}.png"


def open_image_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks that the images of a folder are generated as `manifest` says, or writes it into a new folder.

    Raises:
        UserError: the images were generated otherwise, or the folder holds something else.
    """
    path = folder / MANIFEST
    if not path.exists():
        refuse_existing(folder)
        write_json(path, manifest)
        return
    recorded = read_json(path, "move that folder away, and its images are generated anew")
    for key, value in manifest.items():
        if recorded.get(key) != value:
            raise UserError(
                f"{folder} holds images with another {key.replace('_', ' ')} (see {MANIFEST}); choose another --out, "
                "or move that folder away."
            )


def generate_missing(
    pipeline: Pipeline,
    prompts: Sequence[EvalPrompt],
    cells: Sequence[Cell],
    sampling: SamplingConfig,
    seed: int,
    folder: Path,
) -> int:
    """Generates the images that do not exist yet and saves each batch; returns how many there were."""
    missing = [cell for cell in cells if not (folder / image_name(cell)).exists()]
    if not missing:
        return 0
    batch_size = min(BATCH_SIZE * batch_shards(pipeline.mesh), len(cells))
    texts = [prompts[cell.prompt].text for cell in missing]
    encoded = pipeline.encode_ahead([sampling.negative_prompt, *texts])
    image_sampler = ImageSampler(pipeline.base, pipeline.mesh, sampling, batch_size, quiet=True, encoded=encoded)
    saved = 0
    with progress("generate", len(cells), done=len(cells) - len(missing)) as bar:
        for batch in image_sampler.batches(pipeline.params, texts, seed, [cell.image for cell in missing]):
            for cell, pixels in zip(missing[saved : saved + len(batch)], batch, strict=True):
                origin = {"prompt": prompts[cell.prompt].text, "seed": seed, "index": cell.image, "step": pipeline.step}
                write_png(folder / image_name(cell), Image.fromarray(pixels), origin | sampling.metadata())
            saved += len(batch)
            bar.advance(len(batch))
    return saved


def read_images(folder: Path, cells: Sequence[Cell], num_prompts: int) -> list[list[np.ndarray]]:
    """Returns the images of each prompt, (H, W, 3) uint8.

    Raises:
        UserError: one is damaged; the message names it.
    """
    images = [np.asarray(decode(folder / image_name(cell), "white").image) for cell in cells]
    return by_prompt(images, cells, num_prompts)
