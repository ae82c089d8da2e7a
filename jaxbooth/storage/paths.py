"""Paths from outside: names that are read from files must stay inside their folder, and no path is a glob pattern."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from etils import epath
from etils.epath.gpath import PosixGPath

from jaxbooth.errors import UserError

MAX_NAME_BYTES = 255  # of one part of a path, on every common file system
MAX_SHOWN = 80  # characters of a name in a message


def plain_file_name(name: object, source: str) -> str:
    """Returns a file name that was read from `source`, if it is a plain one, without folders.

    Args:
        name: what was read, of any type.
        source: where it was read, for the message.

    Raises:
        UserError: it is not a plain file name.
    """
    if isinstance(name, str) and is_inside(name) and "/" not in name:
        return name
    raise UserError(
        f"{source} names {ascii_repr(name)}, which is not a plain file name; it may only name files beside it."
    )


def relative_file_name(name: object, source: str) -> str:
    """Returns a relative file name that was read from `source`, such as `sub/b.png`, without a leading `./`.

    Raises:
        UserError: it is absolute, contains `..`, a drive letter, a backslash or a NUL, or no file can have it.
    """
    if isinstance(name, str) and is_inside(name):
        return PurePosixPath(name).as_posix()
    raise UserError(
        f"{source} names {ascii_repr(name)}, which may lie outside its folder; "
        "use a relative path without '..' or '\\'."
    )


def is_inside(name: str) -> bool:
    """Whether a relative name stays below the folder that it is joined to, and a file can have it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or name.endswith("/"):
        return False
    if "\0" in name or "\\" in name or PureWindowsPath(name).drive:
        return False
    return is_utf8(name) and all(len(part.encode()) <= MAX_NAME_BYTES for part in path.parts)


def local_path(name: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` expanded as a shell does."""
    return Path(os.path.expanduser(name))


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, after symlinks and `..` are resolved; neither need exist."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def short_name(name: str, max_bytes: int = MAX_NAME_BYTES // 3) -> str:
    """Returns the beginning of a name, so short that a prefix and a suffix still fit."""
    return name.encode(errors="surrogateescape")[:max_bytes].decode(errors="ignore")


def ascii_repr(name: object) -> str:
    """Returns a value that was read from a file as messages show it: ASCII, one line, not too long."""
    try:
        text = ascii(name)
    except RecursionError:
        return f"a deeply nested {type(name).__name__}"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


class LiteralPath(PosixGPath):
    """A local path for Orbax whose `glob` takes only its argument as a pattern, not the path itself.

    etils joins the two, so that a folder `a[b]` would not be found, and a folder `*` would match its neighbours.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Yields the files below the path that match `pattern`."""
        for name in glob.iglob(pattern, root_dir=self):
            yield self / name


def as_orbax_path(path: Path) -> epath.Path:
    """Returns the path of a checkpoint folder for Orbax, without symlinks and `..`, which TensorStore would misread.

    Raises:
        UserError: Orbax or TensorStore would write to another path than this one, or not find what they wrote.
    """
    is_local = isinstance(path, Path)
    real = os.path.realpath(path) if is_local else str(path)
    reason = unsupported_path_reason(real) if is_local else unsupported_url_reason(real)
    if reason:
        raise UserError(
            f"checkpoints cannot be kept in {ascii_repr(real)}, which has {reason}; choose another --run-dir."
        )
    return LiteralPath(real) if is_local else epath.Path(path)


def unsupported_url_reason(url: str) -> str:
    """Returns what Orbax would take for a pattern in an object store's URL, or an empty string."""
    return "a character of patterns (one of *?[)" if set(url) & set("*?[") else ""


def unsupported_path_reason(path: str) -> str:
    """Returns what Orbax or TensorStore would misread in an absolute local path, or an empty string."""
    if not is_utf8(path):
        return "bytes that are not UTF-8"
    if "\\" in path:
        return "a backslash: TensorStore would write to other folders"
    if "gs:/" in f"{path}/":
        return "'gs:' at the end of a folder's name: Orbax would look for an object store"
    if str(epath.Path(path)) != path:
        return "the name of an object store as its first folder: etils would look for that"
    return ""


def is_utf8(text: str) -> bool:
    """Whether text can be encoded; a lone surrogate, which JSON and file names can contain, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
