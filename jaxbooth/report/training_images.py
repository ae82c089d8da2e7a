"""What a run learned from: its contact sheet, and some of its class images."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxbooth.report.curves import evenly_spread
from jaxbooth.report.images import EmbeddedImage, EmbeddedSize, embed, read_image
from jaxbooth.report.run_data import ClassImageFiles, RunData

SHEET = EmbeddedSize(1400, 82)
CLASS_IMAGE = EmbeddedSize(160, 76)
MOST = 24  # class images shown of each set


class ContactSheet(NamedTuple):
    """A contact sheet, and the runs that have it."""

    runs: list[str]
    image: EmbeddedImage


class ClassImages(NamedTuple):
    """Class images, and the runs that use them.

    Attributes:
        total: how many there are.
        shown: some of them.
    """

    runs: list[str]
    prompt: str
    folder: str
    total: int
    shown: list[EmbeddedImage]


def contact_sheets(runs: Sequence[RunData]) -> list[ContactSheet]:
    """Returns the contact sheets; runs with the same images share one."""
    sheets: dict[bytes, ContactSheet] = {}
    for run in runs:
        path = run.folder.contact_sheet
        image = read_image(path) if path.exists() else None
        if image:
            sheets.setdefault(image.tobytes(), ContactSheet([], embed(image, SHEET))).runs.append(run.name)
    return list(sheets.values())


def class_images(runs: Sequence[RunData]) -> list[ClassImages]:
    """Returns the class images; runs that use the same folder share them."""
    users: dict[str, list[str]] = {}
    sets: dict[str, ClassImageFiles] = {}
    for run in runs:
        for each in run.classes:
            users.setdefault(str(each.folder), []).append(run.name)
            sets[str(each.folder)] = each
    return [embed_class_images(each, users[folder]) for folder, each in sets.items()]


def embed_class_images(found: ClassImageFiles, runs: list[str]) -> ClassImages:
    """Shrinks some images of a set, evenly spread."""
    chosen = [found.files[index] for index in evenly_spread(len(found.files), MOST)]
    shown = [embed(image, CLASS_IMAGE) for path in chosen if (image := read_image(path))]
    return ClassImages(runs, found.prompt, str(found.folder), len(found.files), shown)
