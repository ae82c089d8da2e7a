"""The images of an evaluation: every prompt with the same seeds, drawn once and kept.

Image i of a prompt depends on (seed, i) alone. What is there already is not drawn again, so that an interrupted
evaluation goes on, and one with more seeds adds to it.
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
from jaxbooth.metrics.prompts import EvalPrompt
from jaxbooth.pipeline import Pipeline
from jaxbooth.sharding import batch_shards
from jaxbooth.storage.files import refuse_existing, write_json, write_png
from jaxbooth.storage.text import read_json

MANIFEST = "generation.json"
BATCH_SIZE = 8  # images that each device draws at once, at most
Cell = tuple[int, int]  # number of the prompt, number of the image


def image_name(place: Cell) -> str:
    """Returns the name of an image's file."""
    return f"{place[0]:03d}-{place[1]:03d}.png"


def cells(entries: Sequence[EvalPrompt], num: int, class_num: int) -> list[Cell]:
    """Returns all images that are wanted."""
    return [
        (prompt, number)
        for prompt, entry in enumerate(entries)
        for number in range(num if entry.group == "subject" else class_num)
    ]


def open_image_folder(folder: Path, made: dict[str, Any]) -> None:
    """Makes sure that the images of a folder are made as `made` says; the folder need not exist.

    Raises:
        UserError: they are made otherwise, or are something else.
    """
    path = folder / MANIFEST
    if not path.exists():
        refuse_existing(folder)
        write_json(path, made)
        return
    recorded = read_json(path, "move that folder away, and it is drawn anew")
    for key, value in made.items():
        if recorded.get(key) != value:
            raise UserError(
                f"{folder} holds images with another {key.replace('_', ' ')} (see {MANIFEST}); choose another --out, "
                "or move that folder away."
            )


def generate_missing(
    pipeline: Pipeline,
    entries: Sequence[EvalPrompt],
    wanted: Sequence[Cell],
    settings: SamplingConfig,
    seed: int,
    folder: Path,
) -> int:
    """Draws the images that are not there yet, saving each batch; returns how many it drew."""
    missing = [place for place in wanted if not (folder / image_name(place)).exists()]
    if not missing:
        return 0
    batch = min(BATCH_SIZE * batch_shards(pipeline.mesh), len(wanted))
    image_sampler = ImageSampler(pipeline.base, pipeline.mesh, settings, batch, quiet=True)
    prompts = [entries[prompt].prompt for prompt, _ in missing]
    done = 0
    with progress("draw", len(wanted), done=len(wanted) - len(missing)) as bar:
        for drawn in image_sampler.batches(pipeline.params, prompts, seed, [number for _, number in missing]):
            for place, pixels in zip(missing[done : done + len(drawn)], drawn, strict=True):
                facts = {"prompt": entries[place[0]].prompt, "seed": seed, "index": place[1], "step": pipeline.step}
                write_png(folder / image_name(place), Image.fromarray(pixels), facts | settings.metadata())
            done += len(drawn)
            bar.advance(len(drawn))
    return done


def read_images(folder: Path, entries: Sequence[EvalPrompt], wanted: Sequence[Cell]) -> list[list[np.ndarray]]:
    """Returns the images of each prompt, (H, W, 3) uint8.

    Raises:
        UserError: one is damaged; the message names it.
    """
    images: list[list[np.ndarray]] = [[] for _ in entries]
    for place in wanted:
        images[place[0]].append(np.asarray(decode(folder / image_name(place), "white").image))
    return images
