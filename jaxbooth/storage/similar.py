"""Folders that a mistyped path may have meant."""

from difflib import get_close_matches
from pathlib import Path

LISTED = 3


def contains_file(folder: Path, marker: str) -> bool:
    """Whether a file lies in a folder that can be read."""
    try:
        return (folder / marker).is_file()
    except OSError:
        return False


def folders_containing(parent: Path, marker: str) -> list[Path]:
    """Returns the folders in `parent` in which a file `marker` lies, in the order of their names."""
    try:
        return sorted(path for path in parent.iterdir() if contains_file(path, marker))
    except OSError:  # there is no such folder, or it cannot be listed
        return []


def similar_folders(path: Path, marker: str, others: Path) -> list[Path]:
    """Returns folders with a `marker` beside a path that does not exist, those with the most similar names.

    Args:
        others: where to look too if the path is a mere name.
    """
    found = folders_containing(path.parent, marker)
    if path.parent == Path():
        found += folders_containing(others, marker)
    names = {folder.name: folder for folder in reversed(found)}
    return [names[name] for name in get_close_matches(path.name, names, LISTED)]
