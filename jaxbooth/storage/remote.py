"""Run folders on an object store (`gs://bucket/run`): the same code writes them, through etils' epath.

There a file appears whole by itself, but nothing can be appended to, renamed in one step, or locked.
"""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from etils import epath

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import local_path


def as_path(name: str | os.PathLike[str]) -> Path:
    """Returns an absolute local path, or for a URL an epath, which has those of a path's methods that runs use.

    Raises:
        UserError: the URL is of an unknown kind.
    """
    if isinstance(name, epath.Path):
        return cast(Path, name)
    text = os.fspath(name)
    if "://" not in text:
        return local_path(text).absolute()
    try:
        return cast(Path, epath.Path(text))
    except KeyError:
        raise UserError(f"{text}: no such kind of folder is known; use a local one or gs://BUCKET/FOLDER.") from None


def is_local(path: Path) -> bool:
    """Whether a path is on a file system."""
    return isinstance(path, Path)


def check_reachable(path: Path) -> None:
    """Raises UserError if an object store, or what reads it, is missing or refuses."""
    if is_local(path):
        return
    try:
        path.exists()
    except ImportError:
        raise UserError(f"{path} needs the library of its object store: pip install 'jaxbooth[gcs]'.") from None
    except Exception as error:  # every store has errors of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} cannot be reached ({reason}); check its name and your credentials.") from None


def modified_time(path: Path) -> float:
    """Returns when a file was written, in seconds since 1970."""
    found: Any = path.stat()
    return float(found.st_mtime if is_local(path) else found.mtime)


def file_size(path: Path) -> int:
    """Returns a file's bytes."""
    found: Any = path.stat()
    return int(found.st_size if is_local(path) else found.length)


def upload(folder: Path, target: Path) -> None:
    """Copies all files of a local folder, and overwrites."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        copy = target / str(path.relative_to(folder))
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)


@contextmanager
def staging_folder(folder: Path) -> Generator[Path]:
    """Yields a temporary local folder for what belongs to a remote one, which disappears afterwards."""
    twin = tempfile.mkdtemp(prefix="jaxbooth-")
    try:
        yield Path(twin) / folder.name
    finally:
        shutil.rmtree(twin, ignore_errors=True)
