"""Paths that come from outside: names that files give to files stay inside their folder, and no path is a pattern."""

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
    """Returns a name that `source` gives to a file of a folder, if it is a plain one: no path, nothing outside.

    Args:
        name: what was read; other things than text are refused too.
        source: what messages name, such as the path of the index.

    Raises:
        UserError: it is not a plain file name.
    """
    if isinstance(name, str) and is_inside(name) and "/" not in name:
        return name
    raise UserError(
        f"{source} names {ascii_repr(name)}, which is not a plain file name; it may only name files beside it."
    )


def relative_file_name(name: object, source: str) -> str:
    """Returns a name that `source` gives to a file of a folder or of its subfolders, as `sub/b.png`, without `./`.

    Raises:
        UserError: it is absolute, has a part `..`, a drive letter, a backslash or a NUL, or cannot be a file's name.
    """
    if isinstance(name, str) and is_inside(name):
        return PurePosixPath(name).as_posix()
    raise UserError(
        f"{source} names {ascii_repr(name)}, which may lie outside its folder; "
        "use a relative path without '..' or '\\'."
    )


def is_inside(name: str) -> bool:
    """Whether a name leads to a file below the folder that it is joined to, and a file system can hold it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or name.endswith("/"):
        return False
    if "\0" in name or "\\" in name or PureWindowsPath(name).drive:
        return False
    return is_utf8(name) and all(len(part.encode()) <= MAX_NAME_BYTES for part in path.parts)


def local_path(name: str | os.PathLike[str]) -> Path:
    """Returns a path as a shell would take it: `~` is a home, unless nobody of that name has one."""
    return Path(os.path.expanduser(name))


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it once symlinks and `..` are followed; neither needs to exist."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def short_name(name: str, max_bytes: int = MAX_NAME_BYTES // 3) -> str:
    """Returns the beginning of a name, so short that a file system takes more before and behind it."""
    return name.encode(errors="surrogateescape")[:max_bytes].decode(errors="ignore")


def ascii_repr(name: object) -> str:
    """Returns a name, or another value of a file, as messages show it: one line, printable anywhere, not too long."""
    try:
        text = ascii(name)
    except RecursionError:
        return f"a deeply nested {type(name).__name__}"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


class LiteralPath(PosixGPath):
    """A local path as Orbax takes it, with whatever characters in it: `glob` reads its argument alone as a pattern.

    etils joins the two, so that a folder `a[b]` would not be found and a folder `*` would find its neighbours too.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Yields the files below the path that match `pattern`."""
        for name in glob.iglob(pattern, root_dir=self):
            yield self / name


def as_orbax_path(path: Path) -> epath.Path:
    """Returns a checkpoint folder's path as Orbax takes it: without symlinks and `..`, which TensorStore would cut out.

    Raises:
        UserError: it is a path in which Orbax or TensorStore would not find again what they wrote.
    """
    is_local = isinstance(path, Path)
    real = os.path.realpath(path) if is_local else str(path)
    reason = obstacle(real) if is_local else remote_obstacle(real)
    if reason:
        raise UserError(
            f"checkpoints cannot be kept in {ascii_repr(real)}, which has {reason}; choose another --run-dir."
        )
    return LiteralPath(real) if is_local else epath.Path(path)


def remote_obstacle(url: str) -> str:
    """Returns what would be taken for a pattern in an object store's URL, or an empty string."""
    return "a character of patterns (one of *?[)" if set(url) & set("*?[") else ""


def obstacle(path: str) -> str:
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
    """Whether a text can be encoded: half a surrogate pair, which JSON can spell and file names can hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
