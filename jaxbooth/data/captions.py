"""The captions of a folder's images: in `metadata.jsonl`, in `metadata.csv`, or in a text file beside each of them.

The first two are the Hugging Face ImageFolder convention; `.caption` is the ending that kohya's tools write. A caption
that is there is used or refused by name. It is never passed over for the prompt.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.limits import MAX_PROMPT
from jaxbooth.data.file_names import by_name, by_stem, fold_name, shorten_name
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr, relative_file_name
from jaxbooth.storage.text import parse_json_object, read_lines, read_text

NAME_KEY = "file_name"
CAPTION_KEYS = ("text", "prompt", "caption")
CAPTION_SUFFIXES = (".txt", ".caption")
UNREAD_LIST = "metadata.parquet"  # the third spelling of the ImageFolder convention
JSONL_FORM = '{"file_name": "a.jpg", "text": "..."}'


class Caption(NamedTuple):
    """A caption, and where it was found: a file, for lists with the line."""

    text: str
    source: str


class CaptionEntry(NamedTuple):
    """One line of a caption list: the name as written, its caption, and the file and line."""

    name: object
    caption: str
    source: str


class Captions(NamedTuple):
    """What a folder says of its images.

    Attributes:
        by_image: image -> its caption.
        used: the files that captions were read from.
        overruled: caption files beside images whose caption a list has.
    """

    by_image: dict[Path, Caption]
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
            captions[image] = caption_beside(image, files)
    for image, caption in captions.items():
        check_caption(caption, image)
    return Captions(captions, {*lists, *(file for files in beside.values() for file in files)}, overruled)


def read_lists(lists: Sequence[Path], images: Sequence[Path]) -> dict[Path, Caption]:
    """Reads the folder's caption lists together.

    Raises:
        UserError: see `read_captions`.
    """
    index, captions = by_name(images), dict[Path, Caption]()
    for path in lists:
        for name, text, source in READERS[fold_name(path.name)](path):
            image = find_image(name, source, path.parent, index.find(relative_file_name(name, source)))
            if image in captions:
                raise UserError(f"{source}: {image.name} has a caption already, in {captions[image].source}; keep one.")
            captions[image] = Caption(text, source)
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
        UserError: it names no file, or has no caption, several, or one that is no text.
    """
    captions = {key: fields[key] for key in CAPTION_KEYS if fields.get(key) is not None}
    if NAME_KEY not in fields or not captions:
        raise UserError(f"{source}: expected {form}.")
    for key, caption in captions.items():
        if not isinstance(caption, str):
            raise UserError(f'{source}: "{key}" has to be one text, not {ascii_repr(caption)}.')
    if len({*captions.values()}) > 1:
        raise UserError(f"{source}: {' and '.join(captions)} hold different captions; keep one of them.")
    return CaptionEntry(fields[NAME_KEY], next(iter(captions.values())), source)


def caption_files(entries: Iterable[Path], images: Sequence[Path]) -> dict[Path, list[Path]]:
    """Returns image -> the caption files beside it, `<stem>.txt` and `<stem>.caption` in any case."""
    index, files = by_stem(images), dict[Path, list[Path]]()
    for path in entries:
        if path.suffix.lower() in CAPTION_SUFFIXES and not path.name.startswith("."):
            for image in index.find(path.stem):
                files.setdefault(image, []).append(path)
    return files


def caption_beside(image: Path, files: Sequence[Path]) -> Caption:
    """Reads an image's caption files, which hold one caption.

    Raises:
        UserError: they hold different ones.
    """
    texts = {file: read_text(file).strip() for file in files}
    if len({*texts.values()}) > 1:
        names = " and ".join(file.name for file in files)
        raise UserError(f"{image.parent}: {names} hold different captions for {image.name}; keep one.")
    return Caption(texts[files[0]], str(files[0]))


def check_caption(caption: Caption, image: Path) -> None:
    """Refuses captions that cannot be trained with.

    Raises:
        UserError: it is empty, too long, or has half a character, which JSON can spell.
    """
    text, source = caption
    if not text.strip():
        raise UserError(f"{source}: the caption is empty; write one for {image.name} or remove it.")
    if len(text) > MAX_PROMPT:
        raise UserError(f"{source}: the caption has {len(text):,} characters; at most {MAX_PROMPT:,} are read.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{source}: the caption has half of a surrogate pair; write the whole character.")
