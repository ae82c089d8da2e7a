"""Files appear whole or not at all: everything is written aside and renamed."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxbooth.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file through a temporary one in the same folder, which is created when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 text file."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_png(path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Writes a PNG that carries each of `facts` as a text chunk."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_bytes(path, buffer.getvalue())


def refuse_existing(out: Path) -> None:
    """Raises UserError if there is something in the place of a folder that is to be written (--out)."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder (--out) or remove it.")


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """Yields a folder aside, which becomes `out` when the block ends well and disappears otherwise.

    Raises:
        UserError: `out` exists already and is not an empty folder.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield aside
        aside.chmod(0o755)
        aside.replace(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
