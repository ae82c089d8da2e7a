"""The folders that the page may touch; every path that a browser names is checked here."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxbooth.errors import UserError
from jaxbooth.runs.folder import CONFIG, RunFolder
from jaxbooth.storage.disk import check_writable

SERVER = ".jaxbooth-ui"  # in the root: the token, the lock, and uploads that are not complete
PHOTOS = "photos"  # in the root: folders of uploaded photos
NAME = re.compile(r"\w[\w .+@-]{0,79}(?<![ .])")  # of what is created


class NotFound(Exception):
    """There is no such thing, or it lies outside of the roots: the answer is the same."""


@dataclass(frozen=True)
class Roots:
    """Folders whose files may be read; only the first one is written.

    Attributes:
        runs: holds the run folders.
        others: with photos or models. All are resolved, absolute paths.
    """

    runs: Path
    others: tuple[Path, ...] = ()

    @classmethod
    def open(cls, runs: Path, others: tuple[Path, ...] = ()) -> "Roots":
        """Creates the folder of runs if it is missing.

        Raises:
            UserError: it cannot be written, or another one is no folder.
        """
        check_writable(runs, "--root")
        try:
            (runs / SERVER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--root {runs} cannot be written ({error.strerror}); choose another folder.") from None
        for folder in others:
            if not folder.is_dir():
                raise UserError(f"--folders {folder} is not a folder; name one that exists.")
        return cls(runs.resolve(), tuple(folder.resolve() for folder in others))

    @property
    def server(self) -> Path:
        """The server's own files."""
        return self.runs / SERVER

    @property
    def photos(self) -> Path:
        """Folders of uploaded photos."""
        return self.runs / PHOTOS

    def inside(self, path: str | Path) -> Path:
        """Returns an existing path, absolute or relative to the folder of runs, with all symlinks resolved.

        Raises:
            NotFound: it does not exist, or leads out of the roots or into the server's own files.
        """
        try:
            real = Path(os.path.realpath(self.runs / path, strict=True))
        except (OSError, ValueError):  # ValueError: a NUL
            raise NotFound(str(path)) from None
        if not any(real.is_relative_to(root) for root in (self.runs, *self.others)) or real.is_relative_to(self.server):
            raise NotFound(str(path))
        return real

    def below(self, folder: Path, name: str) -> Path:
        """Returns an existing file or folder that lies in `folder`, or in a folder below it.

        Raises:
            NotFound: it does not exist, or leads out of `folder`.
        """
        real = self.inside(folder / name)
        if not real.is_relative_to(os.path.realpath(folder)) or name.startswith("/"):
            raise NotFound(name)
        return real

    def run(self, name: str) -> RunFolder:
        """Returns a run folder by its name.

        Raises:
            NotFound: there is none.
        """
        if not is_child_name(name):
            raise NotFound(name)
        folder = self.inside(self.runs / name)
        if folder.parent != self.runs or not (folder / CONFIG).is_file():
            raise NotFound(name)
        return RunFolder(folder)

    def new_run(self, name: str) -> Path:
        """Returns the path of a run folder that is to be created.

        Raises:
            UserError: the name cannot be used, or something has it.
        """
        path = self.runs / check_name(name, "run")
        if os.path.lexists(path):
            raise UserError(f"{name} exists already in {self.runs}; choose another name for the run.")
        return path


def is_child_name(name: str) -> bool:
    """Whether a name is that of something directly in a folder, and not hidden."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def check_name(name: str, what: str) -> str:
    """Returns a name for something new.

    Raises:
        UserError: it is empty, too long or holds characters that trouble a shell or a file system.
    """
    if not NAME.fullmatch(name) or name == PHOTOS:
        raise UserError(
            f"{name!r} cannot be the name of a {what}: use up to 80 letters, digits, spaces and the signs . _ - + @, "
            f"beginning with a letter or digit{'; photos is taken' if name == PHOTOS else ''}."
        )
    return name
