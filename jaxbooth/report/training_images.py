"""The images that a run learned from: its contact sheet, and some of its class images."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxbooth.report.curves import evenly_spread
from jaxbooth.report.images import EmbeddedImage, EmbeddedSize, embed, read_image
from jaxbooth.report.run_data import ClassImageFiles, RunData

SHEET = EmbeddedSize(1400, 82)
CLASS_IMAGE = EmbeddedSize(160, 76)
MAX_SHOWN = 24  # of the class images of each folder


class ContactSheet(NamedTuple):
    """A contact sheet, and the runs that have it."""

    runs: list[str]
    image: EmbeddedImage


class EmbeddedClassImages(NamedTuple):
    """Class images, and the runs that use them.

    Attributes:
        total: how many there are.
        images: some of them.
    """

    runs: list[str]
    prompt: str
    folder: str
    total: int
    images: list[EmbeddedImage]


def contact_sheets(runs: Sequence[RunData]) -> list[ContactSheet]:
    """Returns the contact sheets; runs with equal sheets share one."""
    sheets: dict[bytes, ContactSheet] = {}
    for run in runs:
        path = run.folder.contact_sheet
        image = read_image(path) if path.exists() else None
        if image:
            sheets.setdefault(image.tobytes(), ContactSheet([], embed(image, SHEET))).runs.append(run.name)
    return list(sheets.values())


def class_images(runs: Sequence[RunData]) -> list[EmbeddedClassImages]:
    """Returns the class images; runs that use the same folder share them."""
    users: dict[str, list[str]] = {}
    sets: dict[str, ClassImageFiles] = {}
    for run in runs:
        for files in run.classes:
            users.setdefault(str(files.folder), []).append(run.name)
            sets[str(files.folder)] = files
    return [embed_class_images(files, users[folder]) for folder, files in sets.items()]


def embed_class_images(files: ClassImageFiles, runs: list[str]) -> EmbeddedClassImages:
    """Embeds some images of a folder, evenly spread."""
    paths = [files.files[index] for index in evenly_spread(len(files.files), MAX_SHOWN)]
    images = [embed(image, CLASS_IMAGE) for path in paths if (image := read_image(path))]
    return EmbeddedClassImages(runs, files.prompt, str(files.folder), len(files.files), images)
