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

NAME_MARGIN = len("_kohya.safetensors")  # the longest that is put behind the name of a folder to name a file in it
PATH_MARGIN = 300  # of the longest path in a run, that of a checkpoint's parts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class DiskRequirement:
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
def with_filename(path: Path) -> Generator[None]:
    """Gives an error of writing the name of the file, which the system knows only when it opens one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def nearest_existing(path: Path) -> Path:
    """Returns the path itself, or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_writable(folder: Path, key: str) -> None:
    """Raises UserError naming `key` if no file can be made in a folder, or the folder itself cannot."""
    try:
        parent = nearest_existing(folder)
        check_length(folder, parent)
        broken = next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None)
        if broken:
            raise UserError(f"{key} {folder}: the symlink {broken} leads nowhere; remove it or choose another.")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{key} {folder} cannot be written ({error.strerror}); choose another.") from None


def check_length(folder: Path, parent: Path) -> None:
    """Raises OSError if a path is too long for the file system of its `parent`, with what will be put behind it."""
    room = os.pathconf(parent, "PC_NAME_MAX") - NAME_MARGIN, os.pathconf(parent, "PC_PATH_MAX") - PATH_MARGIN
    if len(os.fsencode(folder.name)) > room[0] or len(os.fsencode(folder.absolute())) > room[1]:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder))


def check_space(needs: Sequence[DiskRequirement]) -> None:
    """Raises UserError for the first disk that has less room than all that will be written to it."""
    disks: dict[int, list[DiskRequirement]] = {}
    for need in needs:
        disks.setdefault(nearest_existing(need.folder).stat().st_dev, []).append(need)
    for there in disks.values():
        needed, free = sum(need.size for need in there), free_bytes(there[0].folder)
        if needed > free:
            what = ", ".join(need.what for need in there)
            raise UserError(
                f"{there[0].key} {there[0].folder} has {format_bytes(free)} free, and this run needs about "
                f"{format_bytes(needed)} there ({what}); free some space or choose another folder."
            )


def free_bytes(folder: Path) -> int:
    """Returns what a user may still write to the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def format_bytes(size: int) -> str:
    """Writes a number of bytes, in GB from one on, else in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
