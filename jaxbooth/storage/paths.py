"""Names of files that come from a file: each stays inside its folder, or is refused with a sentence that shows it."""

from pathlib import PurePosixPath, PureWindowsPath

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
    raise UserError(f"{source} names {shown(name)}, which is not a plain file name; it may only name files beside it.")


def relative_file_name(name: object, source: str) -> str:
    """Returns a name that `source` gives to a file of a folder or of its subfolders, as `sub/b.png`, without `./`.

    Raises:
        UserError: it is absolute, has a part `..`, a drive letter, a backslash or a NUL, or cannot be a file's name.
    """
    if isinstance(name, str) and is_inside(name):
        return PurePosixPath(name).as_posix()
    raise UserError(
        f"{source} names {shown(name)}, which may lie outside its folder; use a relative path without '..' or '\\'."
    )


def is_inside(name: str) -> bool:
    """Whether a name leads to a file below the folder that it is joined to, and a file system can hold it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or name.endswith("/"):
        return False
    if "\0" in name or "\\" in name or PureWindowsPath(name).drive:
        return False
    try:
        return all(len(part.encode()) <= MAX_NAME_BYTES for part in path.parts)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return False


def shown(name: object) -> str:
    """Returns a name as messages show it: one line, printable in any terminal, and not too long."""
    text = ascii(name)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."
