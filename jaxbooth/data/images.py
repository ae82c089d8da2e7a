"""A folder of images, their captions and masks: what it holds, and what is left out of it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxbooth.data.captions import CAPTION_SUFFIXES, Captions, read_captions
from jaxbooth.data.decoding import decode, heif_is_readable, read_header
from jaxbooth.data.file_names import NameIndex, by_stem, fold_name, join_names, shorten_name
from jaxbooth.errors import UserError
from jaxbooth.storage.remote import is_local

EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
}  # fmt: skip
HEIF_EXTENSIONS = {".heic", ".heif", ".hif"}
MASK = ".mask.png"  # `<stem>.mask.png` beside an image: white is learned, black is ignored
MANIFEST = "manifest.json"
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
MAX_FOLDERS = 100  # subfolders that are looked into for a message


class ImageFile(NamedTuple):
    """One image on disk, the captions it is trained with, and its index in its folder.

    Attributes:
        caption: as written; of several, the first.
        variants: captions of which a row of a step takes one, where that is not `caption` alone. Equal ones are
            taken more often.
        class_captions: the same captions without the identifier, where a row needs them.
    """

    path: Path
    caption: str
    index: int = 0
    variants: tuple[str, ...] = ()
    class_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """What the image is trained with."""
        return self.variants or (self.caption,)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that is encoded for the image."""
        return self.captions + self.class_captions


class LoadedImage(NamedTuple):
    """A decoded image, upright.

    Attributes:
        image: RGB.
        mask: grey ("L"), of the same size as `image`, or None.
        file_size: width and height in the file where `image` is a reduced one, else None.
    """

    image: Image.Image
    mask: Image.Image | None
    file_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the file, upright."""
        return self.file_size or self.image.size


class UnusedFile(NamedTuple):
    """A file or folder that is not used.

    Attributes:
        reason: why, in a few words; empty for what nobody expects to be used, such as hidden files.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """What a scan found.

    Attributes:
        unused: files and folders that belong to no image.
        overruled: caption files beside images whose caption `metadata.*` has.
    """

    images: list[ImageFile]
    unused: list[UnusedFile] = field(default_factory=list)
    overruled: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many files and folders belong to no image."""
        return len(self.unused)


def scan_folder(folder: Path, prompt: str, key: str, masked: bool = False) -> ImageFolder:
    """Lists a folder's images in name order; captions are what `read_captions` finds, else `prompt`.

    Args:
        key: the configuration key that named the folder, for messages.
        masked: masks are asked for, so each has to belong to an image.

    Raises:
        UserError: no such folder, no images, or masks for missing images; see also `image_files` and
            `read_captions`.
    """
    entries = list_folder(folder, key)
    paths = images_among(entries, folder)
    if not paths:
        raise UserError(no_images_message(folder, key, [unused_file(path) for path in entries]))
    masks = mask_files(entries, by_stem(paths))
    lost = [path for path in visible_files(masks_among(entries)) if path not in masks]
    if masked and lost:
        raise UserError(f"{lost[0]} masks no image: {folder} holds no {masked_stem(lost[0])}.*; rename or remove it.")
    captions = read_captions(entries, paths)
    used = {*paths, *masks, *captions.used}
    return ImageFolder(
        [image_file(path, index, captions, prompt) for index, path in enumerate(paths)],
        [unused_file(path) for path in entries if path not in used and path.name != MANIFEST],
        [path.name for path in captions.overruled],
    )


def list_folder(folder: Path, key: str) -> list[Path]:
    """Lists what lies in a folder, in name order.

    Raises:
        UserError: it is no folder, or cannot be listed.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"{key}: {folder} is not a folder.")
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be listed ({error.strerror or error}).") from None


def image_files(folder: Path) -> list[Path]:
    """Lists the files of a folder that are images, by their names, in name order; a mask is none.

    Raises:
        UserError: some are HEIC, and its reader is not installed; or the folder cannot be listed.
    """
    return images_among(list_folder(folder, "images"), folder)


def images_among(entries: Iterable[Path], folder: Path) -> list[Path]:
    """Returns those entries of a folder that are images, see `image_files`."""
    readable = readable_extensions()
    named = [path for path in entries if path.suffix.lower() in EXTENSIONS | HEIF_EXTENSIONS]
    files = visible_files(path for path in named if masked_stem(path) is None)
    heif = [path for path in files if path.suffix.lower() not in readable]
    if heif:
        raise UserError(
            f"{folder} holds {len(heif)} HEIC file(s), such as {heif[0].name}; pip install 'jaxbooth[heic]' "
            "or convert them to JPEG."
        )
    return files


def visible_files(entries: Iterable[Path]) -> list[Path]:
    """Returns those entries that are files, without hidden ones and the `._name` twins that macOS leaves."""
    return [path for path in entries if not path.name.startswith(".") and path.is_file()]


def masked_stem(path: Path) -> str | None:
    """The stem of the image that a `<stem>.mask.png` (in any case) belongs to; None for other files."""
    return path.name[: -len(MASK)] if path.name.lower().endswith(MASK) else None


def masks_among(entries: Iterable[Path]) -> list[Path]:
    """Returns those entries that have the name of a mask."""
    return [path for path in entries if masked_stem(path) is not None]


def mask_files(entries: Iterable[Path], images: NameIndex) -> dict[Path, list[Path]]:
    """Returns mask -> the images that it belongs to, given their index by stem."""
    owners = {path: images.find(masked_stem(path) or "") for path in visible_files(masks_among(entries))}
    return {path: unused for path, unused in owners.items() if unused}


def readable_extensions() -> set[str]:
    """Extensions that can be decoded here, lower case."""
    return EXTENSIONS | (HEIF_EXTENSIONS if heif_is_readable() else set())


def unused_file(path: Path) -> UnusedFile:
    """Says why an entry of a folder is not used."""
    name, ending = path.name, path.suffix.lower()
    if name.startswith(".") or fold_name(name) in SYSTEM_FILES:
        return UnusedFile(name, "")
    if path.is_dir():
        below = count_below(path)
        return UnusedFile(name, f"subfolder with {below} image(s)" if below else "subfolder")
    if not path.is_file():
        return UnusedFile(name, "neither a file nor a folder" if path.exists() else "link to nothing")
    if masked_stem(path) is not None or ending in CAPTION_SUFFIXES:
        return UnusedFile(name, "no image of this name")
    return UnusedFile(name, f"{shorten_name(ending)} is not read" if ending else "no ending")


def count_below(folder: Path) -> int:
    """Counts the images in a subfolder and those below it, as far as MAX_FOLDERS go; links are not followed."""
    if not is_local(folder) or folder.is_symlink():
        return 0
    known = EXTENSIONS | HEIF_EXTENSIONS
    return sum(
        Path(name).suffix.lower() in known and not name.startswith(".")
        for _, _, names in islice(os.walk(folder), MAX_FOLDERS)
        for name in names
    )


def describe_unused(unused: Iterable[UnusedFile]) -> str:
    """Names what was left out for a reason, each with it; what holds images comes first."""
    explained = sorted((file for file in unused if file.reason), key=lambda file: "image(s)" not in file.reason)
    return join_names(f"{shorten_name(file.name)} ({file.reason})" for file in explained)


def no_images_message(folder: Path, key: str, unused: Sequence[UnusedFile]) -> str:
    """Says of a folder without images what it holds instead."""
    names = describe_unused(unused)
    holds = f"{key}: {folder} holds no image ({len(unused)} other file(s){': ' if names else ''}{names})"
    if any("image(s)" in file.reason for file in unused):
        return f"{holds}; subfolders are not read, so name the one whose images show the subject."
    return f"{holds}; known are jpg, png, webp, avif, bmp, gif, tif."


def image_file(path: Path, index: int, captions: Captions, prompt: str) -> ImageFile:
    """Returns an image with the captions of its own, else with the prompt.

    Raises:
        UserError: the prompt is needed, and empty.
    """
    if path in captions.by_image:
        texts = captions.by_image[path].texts
        return ImageFile(path, texts[0], index, texts)
    if not prompt.strip():
        raise UserError(f"{path}: the caption is empty; write one for {path.name} or remove it.")
    return ImageFile(path, prompt, index)


def load_image(path: Path, masked: bool = False) -> LoadedImage:
    """Decodes an image upright (EXIF) and in RGB (sRGB), with transparency on white, and its mask if `masked`.

    The mask is `<stem>.mask.png` beside the image, else the image's alpha channel, else None.

    Raises:
        UserError: a file is not an image or is damaged, or the mask is all black or of another size.
    """
    image, mask, size = decode(path, "white")
    if not masked:
        return LoadedImage(image, None, size)
    source, mask_size = mask_beside(path) or path, size
    if source != path:
        mask_image, _, mask_size = decode(source, "black", in_srgb=False)  # what a mask leaves transparent is ignored
        mask = mask_image.convert("L")
    if mask is not None and mask_size != size:
        sizes = ["{}x{}".format(*part) for part in (mask_size, size)]
        raise UserError(f"{source} is {sizes[0]} pixels, but {path.name} is {sizes[1]} upright; give both one size.")
    if mask is not None and not mask.getbbox():
        raise UserError(f"{source}: its mask is all black, so nothing of {path.name} would be learned; repaint it.")
    return LoadedImage(image, mask, size)


def has_mask(path: Path) -> bool:
    """Whether an image has a mask, see `load_image`."""
    return mask_beside(path) is not None or read_header(path).has_alpha


def mask_beside(path: Path) -> Path | None:
    """Returns the file that masks an image."""
    entries, stem = sorted(path.parent.iterdir()), fold_name(path.stem)
    near = [entry for entry in masks_among(entries) if fold_name(masked_stem(entry) or "") == stem]
    if not near:
        return None
    images = images_among((entry for entry in entries if fold_name(entry.stem) == stem), path.parent)
    return next((mask for mask, owned in mask_files(near, by_stem(images)).items() if path in owned), None)
