"""Text and JSON files are read in one way, whatever program wrote them and whatever the locale is.

They are UTF-8, with or without a byte order mark. Lines end with LF, CRLF or CR only; `str.splitlines` would also split
at U+2028 and others, which may be part of a line.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxbooth.errors import UserError, short_repr

MAX_TEXT_BYTES = 64 * 2**20  # a hundred times the largest usual file, an index of thousands of tensors
MAX_DEPTH = 32  # levels of JSON; the deepest usual file, a tokenizer, has eight
MAX_REASON = 200  # characters of another library's message
REMEDY = "fetch or export it again"


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Reads a text file; line ends become LF.

    Raises:
        UserError: it is missing, no regular file, larger than `max_bytes`, unreadable, or not UTF-8.
    """
    content = read_bytes(path, max_bytes)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes:
    """Reads a text file as bytes.

    Raises:
        UserError: it is missing, no regular file, larger than `max_bytes`, or unreadable.
    """
    try:
        if isinstance(path, Path) and not stat.S_ISREG(os.stat(path).st_mode):  # reading a FIFO would wait for ever
            raise UserError(f"{path} is not a file; put a text file in its place.")
        with path.open("rb") as file:
            content = file.read(-1 if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(content) > max_bytes:
            raise UserError(f"{path} is larger than {max_bytes:,} bytes, which no file of its kind is; check it.")
        return content
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read ({reason}).") from None


def read_lines(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> list[str]:
    """Reads the lines of a text file, without line ends; a line end at the end of the file starts no other line.

    Raises:
        UserError: as `read_text`.
    """
    text = read_text(path, max_bytes)
    return text.removesuffix("\n").split("\n") if text else []


def read_json(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        remedy: what messages say to do about a damaged file.

    Raises:
        UserError: as `read_text`, or the content is not JSON or no object.
    """
    return parse_json_object(read_text(path), str(path), remedy)


def parse_json_object(text: str, source: str, remedy: str = REMEDY) -> dict[str, Any]:
    """Reads a JSON object from text that comes from `source`, which messages name.

    Raises:
        UserError: it is not JSON, is nested too deeply, holds a number of thousands of digits, or is no object.
    """
    try:
        content = json.loads(text)
        if is_deep(content):
            raise RecursionError
    except RecursionError:
        raise UserError(f"{source} is nested too deeply to be read; {remedy}.") from None
    except ValueError as error:  # JSONDecodeError, and Python's limit of an integer's digits
        raise UserError(f"{source} is not valid JSON ({str(error)[:MAX_REASON]}); {remedy}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} does not hold a JSON object; {remedy}.")
    return content


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads a file of one JSON object a line: each with the number of its line; blank lines are skipped.

    Raises:
        UserError: as `read_text`, or a line is no JSON object or has a key twice.
    """
    objects = []
    for number, line in enumerate(read_lines(path), start=1):
        source = f"{path}, line {number}"
        if line.strip():
            objects.append((number, parse_json_object(line, source, "correct that line")))
            check_unique_keys(line, source)
    return objects


def check_unique_keys(text: str, source: str) -> None:
    """Refuses a key that stands twice in one JSON object; JSON readers would use one of the two values.

    Raises:
        UserError: the message names the key.
    """

    def check_pairs(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise UserError(f"{source}: the key {short_repr(key)} stands there twice; remove one.")
            seen.add(key)

    json.loads(text, object_pairs_hook=check_pairs)


def is_deep(content: Any) -> bool:
    """Whether lists and objects are nested deeper than MAX_DEPTH, which would exhaust recursive code."""
    level = [content]
    for _ in range(MAX_DEPTH):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [child for value in containers for child in (value.values() if isinstance(value, dict) else value)]
    return bool(level)
