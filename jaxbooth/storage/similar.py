"""Folders that a mistyped path may stand for."""

from difflib import get_close_matches
from pathlib import Path

MAX_LISTED = 3


def contains_file(folder: Path, marker: str) -> bool:
    """Whether a folder can be read and contains a file."""
    try:
        return (folder / marker).is_file()
    except OSError:
        return False


def folders_containing(parent: Path, marker: str) -> list[Path]:
    """Returns the folders in `parent` that contain a file `marker`, sorted by name."""
    try:
        return sorted(path for path in parent.iterdir() if contains_file(path, marker))
    except OSError:  # there is no such folder, or it cannot be listed
        return []


def similar_folders(path: Path, marker: str, others: Path) -> list[Path]:
    """Returns the folders with a `marker` whose names are most similar to a path that does not exist.

    Args:
        others: another folder to search if the path is a name without a folder.
    """
    candidates = folders_containing(path.parent, marker)
    if path.parent == Path():
        candidates += folders_containing(others, marker)
    names = {folder.name: folder for folder in reversed(candidates)}
    return [names[name] for name in get_close_matches(path.name, names, MAX_LISTED)]
