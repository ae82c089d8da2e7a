"""Disks: whether a folder can be written, whether it has room, and how an error says that it had none."""

import errno
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxbooth.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Need:
    """Bytes of `what` that will be written into a folder, which `key` sets and which need not exist yet."""

    folder: Path
    key: str
    what: str
    size: int


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk or a quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(number) in str(error) for number in FULL):  # of libraries that raise their own kinds
            return True
        error = error.__cause__
    return False


@contextmanager
def named(path: Path) -> Generator[None]:
    """Gives an error of writing the name of the file, which the system knows only when it opens one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def existing(path: Path) -> Path:
    """Returns the path itself, or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_writable(folder: Path, key: str) -> None:
    """Raises UserError naming `key` if no file can be made in a folder, or the folder itself cannot."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            pass
    except OSError as error:
        raise UserError(f"{key} {folder} cannot be written ({error.strerror}); choose another.") from None


def check_room(needs: Sequence[Need]) -> None:
    """Raises UserError for the first disk that has less room than all that will be written to it."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    for there in disks.values():
        needed, free = sum(need.size for need in there), free_bytes(there[0].folder)
        if needed > free:
            what = ", ".join(need.what for need in there)
            raise UserError(
                f"{there[0].key} {there[0].folder} has {in_words(free)} free, and this run needs about "
                f"{in_words(needed)} there ({what}); free some space or choose another folder."
            )


def free_bytes(folder: Path) -> int:
    """Returns what a user may still write to the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def in_words(size: int) -> str:
    """Writes a number of bytes, in GB from one on, else in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
