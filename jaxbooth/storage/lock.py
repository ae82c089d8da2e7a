"""One training at a time in a run folder, which must stay where it is meanwhile."""

import errno
import fcntl
import json
import os
import platform
import stat
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from jaxbooth.console.progress import run_periodically
from jaxbooth.errors import UserError

LOCK = ".lock"
CHECKED = 1.0  # seconds between two looks at a locked folder


class Lock:
    """A folder that is held by this process; the kernel lets go of it when the process is killed.

    Both the folder itself and the file `.lock` in it, which says who holds it, are locked: the folder, because a file
    can be removed by hand; the file, because network file systems do not lock folders.

    Args:
        lost: called with a sentence, from any thread, when the folder or the file is gone.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, lost: Callable[[str], None]):
        self.folder, self._lost, self._told = folder, lost, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lock(self._directory, folder)
            self._file = hold(folder / LOCK)
        except BaseException:
            os.close(self._directory)
            raise
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        self._file.flush()

    def check(self) -> None:
        """Tells if the folder or the file is gone."""
        loss = self.loss()
        if loss:
            with self._told:
                self._lost(loss)

    def loss(self) -> str | None:
        """Returns what has happened to the folder or the file, if anything has."""
        if is_missing(self.folder, self._directory):
            return (
                f"{self.folder} was deleted or moved while it was trained; nothing more is written. Run the same "
                "command again: it continues if the folder is back in its place, and begins anew if it is not."
            )
        if is_missing(self.folder / LOCK, self._file.fileno()):
            return (
                f"{self.folder / LOCK} was removed while the folder was trained, so that another training could begin "
                "there; nothing more is written. Run the same command again to continue from the last checkpoint."
            )
        return None

    def release(self) -> None:
        """Lets go."""
        if not self.loss():
            (self.folder / LOCK).unlink(missing_ok=True)
        self._file.close()
        os.close(self._directory)


HELD: list[Lock] = []  # by this process


@contextmanager
def locked(folder: Path, lost: Callable[[str], None]) -> Generator[None]:
    """Holds a folder while the block runs; see `Lock`. Where the file system has no locks, it is watched alone."""
    held = Lock(folder, lost)
    HELD.append(held)
    try:
        with run_periodically(CHECKED, held.check):
            yield
    finally:
        HELD.remove(held)
        held.release()


def check_held(path: Path) -> None:
    """Makes sure, before something is written into a folder that this process holds, that the folder is still there."""
    for held in HELD:
        if path.is_relative_to(held.folder):
            held.check()


def is_missing(path: Path, descriptor: int) -> bool:
    """Whether a path no longer leads to what was opened; a disk that does not answer is no answer."""
    try:
        return not os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def lock(descriptor: int, folder: Path) -> None:
    """Locks what is open, where its file system can.

    Raises:
        UserError: another process has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder} is being trained by {holder(folder / LOCK)}; wait for its end, or choose another --run-dir."
        ) from None
    except OSError:
        return


def hold(path: Path) -> IO[str]:
    """Returns the opened lock file, locked.

    Raises:
        UserError: another process has locked it.
        OSError: it is a link, no regular file, or cannot be written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)  # no link's target
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"its {LOCK} is not a file")
        file = os.fdopen(descriptor, "a+", encoding="utf-8")
        try:
            lock(file.fileno(), path.parent)
        except BaseException:
            file.close()
            raise
        if not is_missing(path, file.fileno()):
            return file
        file.close()  # the former holder has removed this one in between


def holder(path: Path) -> str:
    """Says who holds a lock file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    return "another process"
