"""The captions of a folder's images: in `metadata.jsonl`, in `metadata.csv`, or in a text file beside each of them.

The first two are the Hugging Face ImageFolder convention; `.caption` is the ending that kohya's tools write. A caption
that is there is used or refused by name. It is never passed over for the prompt. An image may have several: the lines
of its text file, or a list of texts in `metadata.jsonl`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.limits import MAX_CAPTIONS, MAX_PROMPT
from jaxbooth.data.file_names import by_name, by_stem, fold_name, shorten_name
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr, relative_file_name
from jaxbooth.storage.text import parse_json_object, read_lines, read_text

NAME_KEY = "file_name"
CAPTION_KEYS = ("text", "prompt", "caption")
CAPTION_SUFFIXES = (".txt", ".caption")
UNREAD_LIST = "metadata.parquet"  # the third spelling of the ImageFolder convention
JSONL_FORM = '{"file_name": "a.jpg", "text": "..."}'


class ImageCaptions(NamedTuple):
    """The captions of one image, and where they were found: a file, for lists with the line."""

    texts: tuple[str, ...]
    source: str


class CaptionEntry(NamedTuple):
    """One line of a caption list: the name as written, its captions, and the file and line."""

    name: object
    captions: tuple[str, ...]
    source: str


class Captions(NamedTuple):
    """What a folder says of its images.

    Attributes:
        by_image: image -> its captions, at least one.
        used: the files that captions were read from.
        overruled: caption files beside images whose caption a list has.
    """

    by_image: dict[Path, ImageCaptions]
    used: set[Path]
    overruled: list[Path]


def read_captions(entries: Sequence[Path], images: Sequence[Path]) -> Captions:
    """Reads all captions of a folder.

    Args:
        entries: what lies in the folder.
        images: those of them that are images.

    Raises:
        UserError: a list or a caption file cannot be read, is empty or too long, names something else than one of the
            images, or contradicts another one.
    """
    for path in entries:
        if fold_name(path.name) == UNREAD_LIST:
            raise UserError(
                f"{path}: captions are not read from Parquet; write them as metadata.jsonl or metadata.csv."
            )
    lists = [path for path in entries if fold_name(path.name) in READERS]
    captions = read_lists(lists, images)
    beside = caption_files(entries, images)
    overruled = [file for image, files in beside.items() if image in captions for file in files]
    for image, files in beside.items():
        if image not in captions:
            captions[image] = captions_beside(image, files)
    for image, image_captions in captions.items():
        check_captions(image_captions, image)
    return Captions(captions, {*lists, *(file for files in beside.values() for file in files)}, overruled)


def read_lists(lists: Sequence[Path], images: Sequence[Path]) -> dict[Path, ImageCaptions]:
    """Reads the folder's caption lists together.

    Raises:
        UserError: see `read_captions`.
    """
    index, captions = by_name(images), dict[Path, ImageCaptions]()
    for path in lists:
        for name, texts, source in READERS[fold_name(path.name)](path):
            image = find_image(name, source, path.parent, index.find(relative_file_name(name, source)))
            if image in captions:
                raise UserError(f"{source}: {image.name} has a caption already, in {captions[image].source}; keep one.")
            captions[image] = ImageCaptions(texts, source)
    return captions


def find_image(name: object, source: str, folder: Path, images: list[Path]) -> Path:
    """Returns the one image that an entry means.

    Raises:
        UserError: there is none, or there are several whose names differ in capitals only.
    """
    if len(images) == 1:
        return images[0]
    relative = relative_file_name(name, source)
    if len(images) > 1:
        raise UserError(
            f"{source}: {ascii_repr(name)} may be {images[0].name} or {images[1].name}; spell it as its file."
        )
    if not (folder / relative).is_file():
        raise UserError(f"{source}: {shorten_name(relative)} does not exist in {folder}.")
    if "/" in relative:
        raise UserError(f"{source}: {ascii_repr(name)} is in a subfolder, which is not read; move it to {folder}.")
    raise UserError(
        f"{source}: {shorten_name(relative)} is not an image that is read here; convert it, or remove the line."
    )


def read_jsonl(path: Path) -> Iterator[CaptionEntry]:
    """Yields the entries of `metadata.jsonl`: one JSON object a line."""
    for number, line in enumerate(read_lines(path), start=1):
        source = f"{path}, line {number}"
        if line.strip():
            try:
                entry = parse_json_object(line, source)
            except UserError:
                raise UserError(f"{source}: expected {JSONL_FORM}.") from None
            refuse_duplicates(json.loads(line, object_pairs_hook=key_names), source)
            yield parse_entry(entry, source, JSONL_FORM)


def read_csv(path: Path) -> Iterator[CaptionEntry]:
    """Yields the entries of `metadata.csv`, whose first row names the columns."""
    rows = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if NAME_KEY not in header or not {*CAPTION_KEYS} & {*header}:
            raise UserError(f"{path}, line 1: expected the columns file_name and text, separated by a comma.")
        refuse_duplicates(header, f"{path}, line 1")
        start = rows.line_num + 1
        for row in rows:
            source, start = f"{path}, line {start}", rows.line_num + 1
            if len(row) != len(header) and row:
                raise UserError(f"{source}: {len(row)} cells, expected {len(header)}; quote text that has a comma.")
            if row:
                yield parse_entry(dict(zip(header, row, strict=True)), source, "file_name and text")
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: it is not CSV ({error}).") from None


READERS = {"metadata.jsonl": read_jsonl, "metadata.csv": read_csv}


def key_names(pairs: list[tuple[str, Any]]) -> list[str]:
    """Returns the keys of a JSON object as they are written, also those that are there twice."""
    return [key for key, _ in pairs]


def refuse_duplicates(names: Sequence[str], source: str) -> None:
    """Refuses a key or a column that is there twice, of which readers take one or the other.

    Raises:
        UserError: it is one that captions are read from.
    """
    twice = next((name for name in (NAME_KEY, *CAPTION_KEYS) if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{source}: {twice} is there twice; keep one.")


def parse_entry(fields: dict[str, Any], source: str, form: str) -> CaptionEntry:
    """Returns an entry of a caption list.

    Raises:
        UserError: it names no file, or has no caption, several that differ, or one that is no text.
    """
    captions = {key: parse_texts(fields[key], key, source) for key in CAPTION_KEYS if fields.get(key) is not None}
    if NAME_KEY not in fields or not captions:
        raise UserError(f"{source}: expected {form}.")
    if len({*captions.values()}) > 1:
        raise UserError(f"{source}: {' and '.join(captions)} hold different captions; keep one of them.")
    return CaptionEntry(fields[NAME_KEY], next(iter(captions.values())), source)


def parse_texts(value: object, key: str, source: str) -> tuple[str, ...]:
    """Returns the captions that a key of an entry holds: one text, or a list of them.

    Raises:
        UserError: it holds something else.
    """
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f'{source}: "{key}" has to be one text or a list of texts, not {ascii_repr(value)}.')
    return tuple(texts)


def caption_files(entries: Iterable[Path], images: Sequence[Path]) -> dict[Path, list[Path]]:
    """Returns image -> the caption files beside it, `<stem>.txt` and `<stem>.caption` in any case."""
    index, files = by_stem(images), dict[Path, list[Path]]()
    for path in entries:
        if path.suffix.lower() in CAPTION_SUFFIXES and not path.name.startswith("."):
            for image in index.find(path.stem):
                files.setdefault(image, []).append(path)
    return files


def captions_beside(image: Path, files: Sequence[Path]) -> ImageCaptions:
    """Reads an image's caption files, of which each line that is not empty is a caption.

    Raises:
        UserError: they hold different ones.
    """
    texts = {file: tuple(line.strip() for line in read_lines(file) if line.strip()) for file in files}
    if len({*texts.values()}) > 1:
        names = " and ".join(file.name for file in files)
        raise UserError(f"{image.parent}: {names} hold different captions for {image.name}; keep one.")
    return ImageCaptions(texts[files[0]], str(files[0]))


def check_captions(captions: ImageCaptions, image: Path) -> None:
    """Refuses captions that cannot be trained with.

    Raises:
        UserError: there are none or too many, or one is empty, too long, or has half a character, which JSON can spell.
    """
    texts, source = captions
    if not texts or not all(text.strip() for text in texts):
        raise UserError(f"{source}: the caption is empty; write one for {image.name} or remove it.")
    if len(texts) > MAX_CAPTIONS:
        raise UserError(f"{source}: {image.name} has {len(texts):,} captions; at most {MAX_CAPTIONS:,} are read.")
    for text in texts:
        if len(text) > MAX_PROMPT:
            raise UserError(f"{source}: the caption has {len(text):,} characters; at most {MAX_PROMPT:,} are read.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{source}: the caption has half of a surrogate pair; write the whole character.")
