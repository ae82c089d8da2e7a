"""Files and folders are written completely or not at all: first under a temporary name, then renamed."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxbooth.errors import UserError
from jaxbooth.storage.disk import check_writable, with_filename
from jaxbooth.storage.lock import check_held
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.remote import is_local

UNFINISHED = ".part"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file by way of a temporary one in the same folder, which is created if it is missing."""
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        path.write_bytes(content)  # objects appear when they are complete
        return
    try:
        write_aside(path, content)
    except FileNotFoundError:
        check_held(path)  # the folder may have gone in the meantime
        raise


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file by way of a temporary one in the same folder."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{short_name(path.name)}.", suffix=UNFINISHED)
    try:
        with with_filename(path), os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def is_unfinished(path: Path) -> bool:
    """Whether this is a temporary file that a killed process has left."""
    return path.name.startswith(".") and path.suffix == UNFINISHED


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 text file."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_png(path: Path, image: Image.Image, metadata: Mapping[str, Any]) -> None:
    """Writes a PNG with `metadata` in its text chunks."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_bytes(path, buffer.getvalue())


def refuse_existing(out: Path) -> None:
    """Raises UserError if a folder (--out) cannot be written, or exists and is not empty."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already; choose another folder (--out) or remove it.")
    except OSError as error:
        raise UserError(f"--out {out} cannot be used ({error.strerror}); choose another.") from None
    check_writable(out, "--out")


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """Yields a temporary folder, which becomes `out` if the block succeeds and is removed if it does not.

    Raises:
        UserError: `out` exists already and is not an empty folder, or cannot be written.
    """
    refuse_existing(out)
    out = Path(os.path.realpath(out))
    parent = out if os.path.ismount(out) else out.parent  # a mounted folder cannot be replaced
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{short_name(out.name)}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if parent == out:
            move_entries(temporary, out)
        else:
            temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_tree(path: Path) -> None:
    """Removes a folder and its contents, if it exists; of a symlink, only the link."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_entries(source: Path, target: Path) -> None:
    """Moves the contents of a folder into another one on the same disk, and removes the empty folder."""
    for entry in sorted(source.iterdir()):
        entry.replace(target / entry.name)
    source.rmdir()
