"""Names of files as people and systems spell them: capitals and Unicode forms make no other file."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

MAX_NAMES = 5  # files that a message names
MAX_NAME_LENGTH = 40  # characters of a name in a message


def fold_name(name: str) -> str:
    """Returns what names that differ in capitals or in Unicode form have in common (macOS writes NFD, others NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class NameIndex:
    """Finds files by a part of their name: those that have exactly it, else those that have it but for capitals."""

    def __init__(self, named: Iterable[tuple[str, Path]]):
        """Indexes pairs of a name and the file that has it."""
        self._exact: dict[str, list[Path]] = {}
        self._folded: dict[str, list[Path]] = {}
        for name, path in named:
            self._exact.setdefault(name, []).append(path)
            self._folded.setdefault(fold_name(name), []).append(path)

    def find(self, name: str) -> list[Path]:
        """Returns the files of that name; several where only their capitals or their endings differ."""
        return self._exact.get(name) or self._folded.get(fold_name(name), [])


def by_name(paths: Iterable[Path]) -> NameIndex:
    """Indexes files by their whole names."""
    return NameIndex((path.name, path) for path in paths)


def by_stem(paths: Iterable[Path]) -> NameIndex:
    """Indexes files by their names without the last ending."""
    return NameIndex((path.stem, path) for path in paths)


def join_names(names: Iterable[str]) -> str:
    """Returns up to MAX_NAMES names for a message, and how many there are beyond."""
    every = list(names)
    rest = len(every) - MAX_NAMES
    return ", ".join(every[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def shorten_name(name: str) -> str:
    """Returns a file's name as messages show it: on one line, and not too long."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 4] + " ..."
