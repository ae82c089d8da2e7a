"""Folders of uploaded photos, `ROOT/photos/NAME`: what is put there has a safe name, is complete and can be decoded."""

import os
import re
import tempfile
import threading
import unicodedata
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxbooth.config.limits import MAX_PROMPT
from jaxbooth.data.captions import CAPTION_SUFFIXES, ImageCaptions, caption_files, check_captions
from jaxbooth.data.decoding import decode, stored_size
from jaxbooth.data.file_names import fold_name
from jaxbooth.data.images import (
    HEIF_EXTENSIONS,
    image_files,
    list_folder,
    mask_beside,
    masked_stem,
    readable_extensions,
)
from jaxbooth.errors import UserError
from jaxbooth.storage.files import remove_tree, write_text
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.text import read_text
from jaxbooth.ui.roots import NotFound, Roots, check_name, is_child_name

DELETED = "deleted-"  # begins what is being removed
UPLOADS = "uploads"  # in the server's own folder: what is not complete yet
MAX_STEM = 120  # bytes of a photo's name without its ending
MAX_PHOTO_PIXELS = 2**27  # of an upload: what is decoded without being halved
MAX_EMPTY_PIXELS = 2**24  # beyond, a file with less than a byte for EMPTY pixels is no photo
EMPTY = 100
MAX_SETS = 10_000
_decoding = threading.Lock()  # one at a time: a large photo takes a gigabyte for a moment
_placing = threading.Lock()


def photo_sets(roots: Roots) -> list[Path]:
    """Returns the folders of uploaded photos, the newest first."""
    try:
        folders = [path for path in roots.photos.iterdir() if is_child_name(path.name) and is_own_folder(roots, path)]
    except OSError:
        return []
    return sorted(folders, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def is_own_folder(roots: Roots, path: Path) -> bool:
    """Whether a folder lies directly in `ROOT/photos`, and is no link to another one."""
    return path.is_dir() and Path(os.path.realpath(path)).parent == roots.photos


def count_photos(folder: Path) -> int:
    """Counts the images of a folder."""
    try:
        return len(image_files(folder))
    except UserError:  # HEIC without its reader
        return 0


def find_set(roots: Roots, name: str) -> Path:
    """Returns a folder of uploaded photos.

    Raises:
        NotFound: there is none of that name.
    """
    if not is_child_name(name):
        raise NotFound(name)
    folder = roots.inside(roots.photos / name)
    if folder.parent != roots.photos or not folder.is_dir():
        raise NotFound(name)
    return folder


def create_set(roots: Roots, wanted: str) -> Path:
    """Creates an empty folder for photos; where the name is taken, with a number behind it.

    Raises:
        UserError: the name cannot be used.
    """
    check_name(wanted, "folder of photos")
    roots.photos.mkdir(exist_ok=True)
    for number in range(1, MAX_SETS):
        folder = roots.photos / (wanted if number == 1 else f"{wanted[:70]}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{roots.photos} holds {MAX_SETS} folders named {wanted}; choose another name.")


def safe_name(name: str) -> str:
    """Returns the name under which an uploaded file is kept: its own, as far as it can be one.

    Raises:
        UserError: nothing of that ending is read.
    """
    base = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    kept = "".join(character for character in base if unicodedata.category(character)[0] != "C").strip()
    stem, ending = os.path.splitext(kept.lstrip(". "))
    if ending.lower() not in {*readable_extensions(), *CAPTION_SUFFIXES}:
        if ending.lower() in HEIF_EXTENSIONS:
            raise UserError(f"{base} is a HEIC file; save it as JPEG, or pip install 'jaxbooth[heic]' on the server.")
        raise UserError(f"{base or name!r} is not read; photos are jpg, png, webp, avif, bmp, gif or tif.")
    return (short_name(stem, MAX_STEM).strip() or "photo") + ending


async def receive(roots: Roots, chunks: AsyncIterator[bytes]) -> Path:
    """Writes an upload into the server's own folder, and returns the file; none is left if the connection breaks.

    Raises:
        UserError: it is empty.
    """
    folder = roots.server / UPLOADS
    folder.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        size = 0
        with os.fdopen(handle, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                file.write(chunk)
        if not size:
            raise UserError("the file is empty; choose another.")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def remove_unfinished(roots: Roots) -> None:
    """Removes what a server that was killed has left in its own folder: of uploads, plans, new and deleted runs."""
    folder = roots.server / UPLOADS
    uploads = list(folder.iterdir()) if folder.is_dir() else []
    for path in (*uploads, *roots.server.glob("plan-*.yaml")):
        path.unlink(missing_ok=True)
    for pattern in ("new-*", DELETED + "*"):
        for path in roots.server.glob(pattern):
            remove_tree(path)


def keep(upload: Path, folder: Path, name: str) -> str:
    """Checks an uploaded photo, mask or caption file, moves it into a folder, and returns the name it has there.

    A photo that is there already, byte for byte, is not kept twice.

    Raises:
        UserError: it cannot be read as what its name says.
    """
    try:
        name = safe_name(name)
        if Path(name).suffix.lower() in CAPTION_SUFFIXES:
            check_caption_file(upload, name)
        else:
            check_photo(upload, name)
        with _placing:
            return place(upload, folder, name)
    finally:
        upload.unlink(missing_ok=True)


def place(upload: Path, folder: Path, name: str) -> str:
    """Moves a checked upload into a folder under a name that is free; captions and masks replace older ones."""
    is_photo = Path(name).suffix.lower() not in CAPTION_SUFFIXES and masked_stem(Path(name)) is None
    if is_photo:
        existing = folder / name
        if existing.is_file() and existing.read_bytes() == upload.read_bytes():
            return name
        taken = {fold_name(path.stem) for path in image_files(folder)}
        name = next(other for other in numbered(name) if fold_name(Path(other).stem) not in taken)
    upload.chmod(0o644)
    os.replace(upload, folder / name)
    return name


def numbered(name: str) -> Iterator[str]:
    """Yields a name, and then others with a number."""
    yield name
    stem, ending = os.path.splitext(name)
    for number in range(2, MAX_SETS):
        yield f"{stem} ({number}){ending}"


def check_photo(path: Path, name: str) -> None:
    """Decodes a photo.

    Raises:
        UserError: it cannot be decoded, or is larger than anything that a camera makes.
    """
    with errors_about(path, name), _decoding:
        width, height = stored_size(path)
        pixels = width * height
        if pixels > MAX_PHOTO_PIXELS:
            raise UserError(f"{path} has {pixels:,} pixels; make it smaller, {MAX_PHOTO_PIXELS:,} are the most.")
        if is_bomb(pixels, path.stat().st_size):
            raise UserError(f"{path} claims {pixels:,} pixels in {path.stat().st_size:,} bytes, so it is no photo.")
        decode(path, "white")


def is_bomb(pixels: int, size: int) -> bool:
    """Whether an image has so few bytes for its pixels that it was made to fill the memory."""
    return pixels > MAX_EMPTY_PIXELS and pixels > EMPTY * size


def check_caption_file(path: Path, name: str) -> None:
    """Reads a caption file.

    Raises:
        UserError: it is too large or no UTF-8 text.
    """
    if path.stat().st_size > 4 * MAX_PROMPT:
        raise UserError(f"{name} is too large for a caption.")
    with errors_about(path, name):
        read_text(path)


@contextmanager
def errors_about(path: Path, name: str) -> Generator[None]:
    """Names a file in messages as its owner does."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def remove_photo(folder: Path, name: str) -> None:
    """Deletes a photo with its mask and its caption files.

    Raises:
        NotFound: it is no image of the folder.
    """
    photo, images = find_photo(folder, name), image_files(folder)
    captions = caption_files(list_folder(folder, "photos"), [photo])
    mask = mask_beside(photo)
    is_alone = [path.stem for path in images].count(photo.stem) == 1
    photo.unlink(missing_ok=True)
    for path in [*captions.get(photo, []), *([mask] if mask else [])] if is_alone else []:
        path.unlink(missing_ok=True)


def find_photo(folder: Path, name: str) -> Path:
    """Returns an image of a folder.

    Raises:
        NotFound: there is none of that name.
    """
    photo = folder / name
    if not is_child_name(name) or photo not in image_files(folder):
        raise NotFound(name)
    return photo


def write_caption(folder: Path, name: str, text: str) -> None:
    """Writes the captions of a photo, one a line, into the text file beside it; none at all removes the file.

    Raises:
        UserError: a caption is too long.
        NotFound: there is no such photo.
    """
    photo = find_photo(folder, name)
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    files = caption_files(list_folder(folder, "photos"), [photo]).get(photo, [])
    target = files[0] if files else photo.with_suffix(".txt")
    if lines:
        check_captions(ImageCaptions(lines, photo.name), photo)
        write_text(target, "\n".join(lines) + "\n")
    for path in files:
        if path != target or not lines:
            path.unlink(missing_ok=True)
