"""What a run learned from: its contact sheet, and some of its class pictures."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxbooth.report.curves import evenly
from jaxbooth.report.images import Shown, Size, embed, read_picture
from jaxbooth.report.run_data import ClassPictures, Run

SHEET = Size(1400, 82)
CLASS_PICTURE = Size(160, 76)
MOST = 24  # class pictures shown of each set


class Sheet(NamedTuple):
    """A contact sheet, and the runs that have it."""

    runs: list[str]
    picture: Shown


class ClassSet(NamedTuple):
    """Class pictures, and the runs that use them.

    Attributes:
        total: how many there are.
        shown: some of them.
    """

    runs: list[str]
    prompt: str
    folder: str
    total: int
    shown: list[Shown]


def contact_sheets(runs: Sequence[Run]) -> list[Sheet]:
    """Returns the contact sheets; runs with the same pictures share one."""
    sheets: dict[bytes, Sheet] = {}
    for run in runs:
        path = run.folder.contact_sheet
        image = read_picture(path) if path.exists() else None
        if image:
            sheets.setdefault(image.tobytes(), Sheet([], embed(image, SHEET))).runs.append(run.name)
    return list(sheets.values())


def class_sets(runs: Sequence[Run]) -> list[ClassSet]:
    """Returns the class pictures; runs that use the same folder share them."""
    users: dict[str, list[str]] = {}
    sets: dict[str, ClassPictures] = {}
    for run in runs:
        for each in run.classes:
            users.setdefault(str(each.folder), []).append(run.name)
            sets[str(each.folder)] = each
    return [class_set(each, users[folder]) for folder, each in sets.items()]


def class_set(found: ClassPictures, runs: list[str]) -> ClassSet:
    """Shrinks some pictures of a set, evenly spread."""
    chosen = [found.files[index] for index in evenly(len(found.files), MOST)]
    shown = [embed(image, CLASS_PICTURE) for path in chosen if (image := read_picture(path))]
    return ClassSet(runs, found.prompt, str(found.folder), len(found.files), shown)
