"""A folder of pictures, their captions and masks: what it holds, and how one picture is decoded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxbooth.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp"}
HEIF_EXTENSIONS = {".heic", ".heif"}
CAPTIONS = "metadata.jsonl"
CAPTION_KEYS = ("text", "prompt", "caption")
DECODER_ERRORS = (  # what Pillow raises on files that are damaged, too large or no pictures
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, RuntimeError,
)  # fmt: skip
MASK = ".mask.png"  # `<stem>.mask.png` beside a picture: white is learned, black is ignored
NOT_JUNK = {CAPTIONS, "manifest.json"}


class Picture(NamedTuple):
    """One picture on disk, the caption it is trained with, and its place among the pictures of its folder."""

    path: Path
    caption: str
    place: int = 0


class Opened(NamedTuple):
    """A decoded picture, upright: RGB, and a grey ("L") mask of the same size or None."""

    image: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class Folder:
    """What a scan found. `skipped` counts hidden files, and files and folders that belong to no picture."""

    pictures: list[Picture]
    skipped: int


def scan(folder: Path, prompt: str, key: str, masked: bool = False) -> Folder:
    """Lists a folder's pictures in name order; captions come from metadata.jsonl, else <stem>.txt, else `prompt`.

    Args:
        key: the configuration key that named the folder, for messages.
        masked: masks are asked for, so each has to belong to a picture.

    Raises:
        UserError: no such folder, no pictures, captions or masks for missing pictures; see also `picture_files`.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is not a folder.")
    entries, paths = list(folder.iterdir()), picture_files(folder)
    masks = [path for path in visible_files(folder) if masked_stem(path) is not None]
    stems = {path.stem for path in paths}
    lost = [path for path in masks if masked_stem(path) not in stems]
    used = NOT_JUNK | {path.name for path in {*paths, *masks} - {*lost}} | {f"{stem}.txt" for stem in stems}
    skipped = sum(path.name not in used for path in entries)
    if not paths:
        raise UserError(f"{key}: {folder} holds no picture ({skipped} other file(s)); known are jpg, png, webp, avif.")
    if masked and lost:
        raise UserError(f"{lost[0]} masks no picture: {folder} holds no {masked_stem(lost[0])}.*; rename or remove it.")
    listed = read_captions(folder / CAPTIONS)
    pictures = [Picture(path, caption_of(path, listed, prompt), place) for place, path in enumerate(paths)]
    return Folder(pictures, skipped)


def picture_files(folder: Path) -> list[Path]:
    """Lists the files of a folder that are pictures, by their names, in name order; a mask is none.

    Raises:
        UserError: some are HEIC, and its reader is not installed.
    """
    readable, files = readable_extensions(), visible_files(folder)
    heif = [path for path in files if path.suffix.lower() in HEIF_EXTENSIONS - readable]
    if heif:
        raise UserError(
            f"{folder} holds {len(heif)} HEIC file(s), such as {heif[0].name}; pip install 'jaxbooth[heic]' "
            "or convert them to JPEG."
        )
    return [path for path in files if path.suffix.lower() in readable and masked_stem(path) is None]


def visible_files(folder: Path) -> list[Path]:
    """Lists the files of a folder in name order, without hidden ones and the `._name` twins that macOS leaves."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def masked_stem(path: Path) -> str | None:
    """The stem of the picture that a `<stem>.mask.png` (in any case) belongs to; None for other files."""
    return path.name[: -len(MASK)] if path.name.lower().endswith(MASK) else None


def readable_extensions() -> set[str]:
    """Extensions that can be decoded here, lower case."""
    return EXTENSIONS | (HEIF_EXTENSIONS if heif_is_readable() else set())


def heif_is_readable() -> bool:
    """Registers the HEIC reader when pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener  # ty: ignore[import-not-found] (an optional extra)
    except ImportError:
        return False
    register_heif_opener()
    return True


def read_captions(path: Path) -> dict[str, str]:
    """Reads `{"file_name": ..., "text": ...}` lines, the Hugging Face ImageFolder convention.

    Raises:
        UserError: a line is not such an object, or names a picture that is not there.
    """
    captions: dict[str, str] = {}
    for number, line in enumerate(read_caption_file(path).splitlines() if path.exists() else [], start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file_name"]
            caption = next(entry[key] for key in CAPTION_KEYS if key in entry)
            if not isinstance(name, str) or not isinstance(caption, str):
                raise TypeError
        except (json.JSONDecodeError, TypeError, KeyError, StopIteration):
            raise UserError(f'{path}, line {number}: expected {{"file_name": ..., "text": ...}}.') from None
        if not (path.parent / name).is_file():
            raise UserError(f"{path}, line {number}: {name} does not exist in {path.parent}.")
        captions[name] = caption
    return captions


def read_caption_file(path: Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        UserError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def caption_of(path: Path, listed: dict[str, str], prompt: str) -> str:
    """Returns a picture's caption.

    Raises:
        UserError: it is empty.
    """
    sidecar = path.with_suffix(".txt")
    if path.name in listed:
        source, caption = path.parent / CAPTIONS, listed[path.name]
    elif sidecar.exists():
        source, caption = sidecar, read_caption_file(sidecar).strip()
    else:
        source, caption = path, prompt
    if not caption.strip():
        raise UserError(f"{source}: the caption is empty; write one for {path.name} or remove it.")
    return caption


def open_picture(path: Path, masked: bool = False) -> Opened:
    """Decodes a picture upright (EXIF) and in RGB, with transparency on white, and its mask if `masked`.

    The mask is `<stem>.mask.png` beside the picture, else the picture's alpha channel, else None.

    Raises:
        UserError: a file is not a picture or is damaged, or the mask is all black or of another size.
    """
    image, mask = decode(path, "white")
    if not masked:
        return Opened(image, None)
    source = next((file for file in sorted(path.parent.iterdir()) if masked_stem(file) == path.stem), path)
    if source != path:
        mask = decode(source, "black")[0].convert("L")  # what a mask leaves transparent is ignored
    if mask is not None and mask.size != image.size:
        sizes = ["{}x{}".format(*part.size) for part in (mask, image)]
        raise UserError(f"{source} is {sizes[0]} pixels, but {path.name} is {sizes[1]} upright; give both one size.")
    if mask is not None and not mask.getbbox():
        raise UserError(f"{source}: its mask is all black, so nothing of {path.name} would be learned; repaint it.")
    return Opened(image, mask)


def decode(path: Path, ground: str) -> tuple[Image.Image, Image.Image | None]:
    """Returns a file's upright RGB picture, transparency on a ground colour, and its alpha channel if it has one.

    Raises:
        UserError: the file is not a picture or is damaged.
    """
    try:
        with Image.open(path) as file:
            image, alpha = ImageOps.exif_transpose(file), None
            if image.mode.startswith("I;16"):  # Pillow would clip sixteen bits to eight, not scale them
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                alpha = image.getchannel("A")
                image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
            return image.convert("RGB"), alpha
    except DECODER_ERRORS as error:
        raise UserError(f"{path} cannot be decoded ({error}); replace it or remove it.") from None
