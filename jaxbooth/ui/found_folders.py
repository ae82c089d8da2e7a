"""What of the user's own lies in the roots: folders with photos, and base models."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxbooth.data.images import EXTENSIONS, HEIF_EXTENSIONS
from jaxbooth.runs.folder import CONFIG
from jaxbooth.ui.roots import PHOTOS, Roots

DEPTH = 3  # folders below a root that are looked into
MAX_FOLDERS = 2000  # that are looked into at all
SECONDS = 10.0  # for which what was found is shown again
MODEL = "model_index.json"
WEIGHTS = ".safetensors"
IMAGES = EXTENSIONS | HEIF_EXTENSIONS


class Found(NamedTuple):
    """What was found.

    Attributes:
        photos: folders with images, apart from those of uploaded ones.
        models: diffusers folders and single files.
    """

    photos: tuple[Path, ...]
    models: tuple[Path, ...]


class Finder:
    """Looks for photos and models in the roots, and remembers them for a moment."""

    def __init__(self, roots: Roots, clock: Callable[[], float] = time.monotonic):
        self._roots, self._clock = roots, clock
        self._found, self._until = Found((), ()), float("-inf")

    def look(self) -> Found:
        """Returns what there is."""
        now = self._clock()
        if now >= self._until:
            self._found, self._until = find(self._roots), now + SECONDS
        return self._found


def find(roots: Roots) -> Found:
    """Looks for photos and models; links are not followed, and run folders are left out."""
    photos: list[Path] = []
    models: list[Path] = []
    for folder, names in folders_below(roots):
        if MODEL in names:
            models.append(folder)
        elif not is_part_of_model(folder):
            models += [folder / name for name in names if name.endswith(WEIGHTS)]
        if any(os.path.splitext(name)[1].lower() in IMAGES for name in names):
            photos.append(folder)
    return Found(tuple(sorted(set(photos))), tuple(sorted(set(models))))


def is_part_of_model(folder: Path) -> bool:
    """Whether a folder is a component of a diffusers model."""
    return (folder.parent / MODEL).is_file()


def folders_below(roots: Roots) -> Iterator[tuple[Path, list[str]]]:
    """Yields folders and the names of their files, nearest first, as far as DEPTH and MAX_FOLDERS go."""
    waiting = [(root, 0) for root in dict.fromkeys((roots.runs, *roots.others))]
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.pop(0)
        try:
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            files = [entry.name for entry in visible if entry.is_file()]
            below = [Path(entry.path) for entry in visible if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        if CONFIG in files and MODEL not in files:
            continue
        yield folder, files
        if depth < DEPTH:
            waiting += [(path, depth + 1) for path in sorted(below) if path != roots.runs / PHOTOS]
