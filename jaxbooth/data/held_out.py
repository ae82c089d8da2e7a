"""Held-out images: which photos of a folder are taken out of its training, and that none is trained on all the same."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from jaxbooth.data.decoding import read_header
from jaxbooth.data.images import ImageFile, ImageFolder, load_image
from jaxbooth.errors import UserError


def hold_out(folder: ImageFolder, count: int, seed: int) -> tuple[ImageFolder, list[ImageFile]]:
    """Returns a folder without `count` of its images, and those images, both in the folder's order.

    Which ones is a function of the seed and of each image's own name: another photo in the folder can take the place
    of one of them, and changes nothing else. All keep their index, by which random crops are chosen.
    """
    names = held_out_names([file.path.name for file in folder.images], count, seed)
    trained = [file for file in folder.images if file.path.name not in names]
    return replace(folder, images=trained), [file for file in folder.images if file.path.name in names]


def held_out_names(names: Iterable[str], count: int, seed: int) -> set[str]:
    """Returns the `count` names with the least SHA-256 of seed and name."""
    return set(sorted(names, key=lambda name: hashlib.sha256(b"%d %s" % (seed, os.fsencode(name))).digest())[:count])


def check_not_trained(held_out: Sequence[ImageFile], trained: Sequence[ImageFile]) -> None:
    """Refuses a held-out image that has the same pixels as one that is trained on, whatever the files' formats.

    Every held-out image is decoded here, and of the others those of the same size.

    Raises:
        UserError: there is one, and the message names both files; or an image cannot be decoded.
    """
    sizes = {read_header(file.path).size for file in held_out}
    known = {pixel_digest(file.path): file.path for file in held_out}
    for file in trained:
        same = known.get(pixel_digest(file.path)) if read_header(file.path).size in sizes else None
        if same:
            raise UserError(
                f"{same} is held out and shows the same pixels as {file.path}, which is trained on, so its loss would "
                "say nothing; remove one of the two."
            )


def pixel_digest(path: Path) -> str:
    """Returns the SHA-256 of an image's size and its upright RGB pixels."""
    image = load_image(path).image
    return hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()
