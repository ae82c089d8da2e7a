"""A folder of pictures with captions, turned into the pixels that the model sees."""

import json
from collections.abc import Iterator
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
NOT_JUNK = {CAPTIONS, "manifest.json"}


class Picture(NamedTuple):
    """One picture on disk and the caption it is trained with."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Folder:
    """What a scan found. `skipped` counts hidden files, and files and folders that are no pictures."""

    pictures: list[Picture]
    skipped: int


def scan(folder: Path, prompt: str, key: str) -> Folder:
    """Lists a folder's pictures in name order; captions come from metadata.jsonl, else <stem>.txt, else `prompt`.

    Args:
        key: the configuration key that named the folder, for messages.

    Raises:
        UserError: no such folder, no pictures, captions for missing pictures, or HEIC without its reader.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is not a folder.")
    readable = readable_extensions()
    entries = sorted(folder.iterdir())
    paths = [path for path in entries if path.is_file() and path.suffix.lower() in readable and not hidden(path)]
    heif = [path for path in entries if path.suffix.lower() in HEIF_EXTENSIONS - readable and not hidden(path)]
    if heif:
        raise UserError(
            f"{folder} holds {len(heif)} HEIC file(s), such as {heif[0].name}; pip install 'jaxbooth[heic]' "
            "or convert them to JPEG."
        )
    used = {path.name for path in paths} | NOT_JUNK | {f"{path.stem}.txt" for path in paths}
    skipped = sum(path.name not in used for path in entries)
    if not paths:
        raise UserError(
            f"{key}: {folder} holds no picture ({skipped} other file(s)); known are jpg, png, webp and avif."
        )
    listed = read_captions(folder / CAPTIONS)
    return Folder([Picture(path, caption_of(path, listed, prompt)) for path in paths], skipped)


def readable_extensions() -> set[str]:
    """Extensions that can be decoded here, lower case."""
    return EXTENSIONS | (HEIF_EXTENSIONS if heif_is_readable() else set())


def hidden(path: Path) -> bool:
    """Whether a file is hidden, which includes the `._name` twins that macOS leaves."""
    return path.name.startswith(".")


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


def open_picture(path: Path) -> Image.Image:
    """Decodes a picture upright (EXIF) and in RGB, with transparency on white.

    Raises:
        UserError: the file is not a picture or is damaged.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow would clip sixteen bits to eight, not scale them
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except DECODER_ERRORS as error:
        raise UserError(f"{path} cannot be decoded ({error}); replace it or remove it.") from None


class Framing(NamedTuple):
    """Which variants of a picture are kept: crops times mirrorings.

    Attributes:
        resolution: side in pixels.
        crops: 0 for one center crop, else that many random ones.
        flip: each crop also mirrored.
        seed: decides the random crops, together with the picture's place in the folder.
    """

    resolution: int
    crops: int
    flip: bool
    seed: int

    def apply(self, image: Image.Image, index: int) -> np.ndarray:
        """Returns the (variants, resolution, resolution, 3) uint8 variants of picture number `index`."""
        scale = self.resolution / min(image.size)
        width, height = (max(self.resolution, round(side * scale)) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
        spare = np.array(pixels.shape[:2]) - self.resolution
        if self.crops:
            corners = np.random.default_rng([self.seed, index]).integers(0, spare + 1, (self.crops, 2))
        else:
            corners = spare[None] // 2
        crops = [pixels[y : y + self.resolution, x : x + self.resolution] for y, x in corners]
        return np.stack([*crops, *(crop[:, ::-1] for crop in crops)] if self.flip else crops)


def framed(pictures: list[Picture], framing: Framing) -> Iterator[np.ndarray]:
    """Yields each picture's variants, in order."""
    for index, picture in enumerate(pictures):
        yield framing.apply(open_picture(picture.path), index)
