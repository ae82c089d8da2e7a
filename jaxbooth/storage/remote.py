"""Run folders in an object store (`gs://bucket/run`) are read and written through etils' epath.

A file there appears only when it is complete. Nothing can be appended to, renamed in one step, or locked.
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
    """Returns an absolute local path, or for a URL an epath, which has the methods of a path that runs use.

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
        raise UserError(f"{text}: such URLs are not supported; use a local folder or gs://BUCKET/FOLDER.") from None


def is_local(path: Path) -> bool:
    """Whether a path is local."""
    return isinstance(path, Path)


def check_reachable(path: Path) -> None:
    """Raises UserError if an object store cannot be reached, or its library is not installed."""
    if is_local(path):
        return
    try:
        path.exists()
    except ImportError:
        raise UserError(f"{path} needs the library of its object store: pip install 'jaxbooth[gcs]'.") from None
    except Exception as error:  # each store has exceptions of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} cannot be reached ({reason}); check its name and your credentials.") from None


def modified_time(path: Path) -> float:
    """Returns when a file was last written, in seconds since 1970."""
    stat: Any = path.stat()
    return float(stat.st_mtime if is_local(path) else stat.mtime)


def file_size(path: Path) -> int:
    """Returns a file's size in bytes."""
    stat: Any = path.stat()
    return int(stat.st_size if is_local(path) else stat.length)


def upload(folder: Path, target: Path) -> None:
    """Copies all files of a local folder; existing ones are overwritten."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        copy = target / str(path.relative_to(folder))
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)


@contextmanager
def staging_folder(folder: Path) -> Generator[Path]:
    """Yields a temporary local folder with the name of a remote one; it is removed afterwards."""
    parent = tempfile.mkdtemp(prefix="jaxbooth-")
    try:
        yield Path(parent) / folder.name
    finally:
        shutil.rmtree(parent, ignore_errors=True)
