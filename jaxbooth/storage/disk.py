"""Disk space and write permission are checked before work starts, and a full disk is recognised in any error."""

import errno
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxbooth.errors import UserError

NAME_MARGIN = len("_comfyui.safetensors")  # the longest suffix by which a file is named after its folder
PATH_MARGIN = 300  # length of the longest path inside a run folder, that of a checkpoint's parts
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class DiskRequirement:
    """Space that a folder needs.

    Attributes:
        folder: it need not exist yet.
        key: the flag that sets it.
        purpose: what will be written.
        size: bytes.
    """

    folder: Path
    key: str
    purpose: str
    size: int


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        if any(os.strerror(number) in str(error) for number in DISK_FULL):  # of libraries with exceptions of their own
            return True
        error = error.__cause__
    return False


@contextmanager
def with_filename(path: Path) -> Generator[None]:
    """Adds the file's name to errors of writing; the system names files only when it opens them."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def nearest_existing(path: Path) -> Path:
    """Returns the path itself, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())


def check_writable(folder: Path, key: str) -> None:
    """Raises UserError, with the flag `key`, if a folder or a file in it cannot be created."""
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
    """Raises OSError if the paths of files in a folder would be too long for the file system of its `parent`."""
    max_name = os.pathconf(parent, "PC_NAME_MAX") - NAME_MARGIN
    max_path = os.pathconf(parent, "PC_PATH_MAX") - PATH_MARGIN
    if len(os.fsencode(folder.name)) > max_name or len(os.fsencode(folder.absolute())) > max_path:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder))


def check_space(requirements: Sequence[DiskRequirement]) -> None:
    """Raises UserError for the first disk with less free space than all that will be written to it."""
    by_disk: dict[int, list[DiskRequirement]] = {}
    for requirement in requirements:
        by_disk.setdefault(disk_of(requirement.folder), []).append(requirement)
    for same_disk in by_disk.values():
        first = same_disk[0]
        needed = sum(requirement.size for requirement in same_disk)
        free = free_bytes(first.folder)
        if needed > free:
            purposes = ", ".join(requirement.purpose for requirement in same_disk)
            raise UserError(
                f"{first.key} {first.folder} has {format_bytes(free)} free, and this run needs about "
                f"{format_bytes(needed)} there ({purposes}); free some space or choose another folder."
            )


def disk_of(folder: Path) -> int:
    """Returns a number for the disk of a folder, which need not exist yet."""
    return nearest_existing(folder).stat().st_dev


def free_bytes(folder: Path) -> int:
    """Returns the free space for a user on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def format_bytes(size: int) -> str:
    """Returns a number of bytes in GB, or in MB if it is below 1 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
