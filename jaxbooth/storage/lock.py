"""Locks on folders, which are watched as well, because a locked folder can still be deleted or moved.

The locks are filelock's. The file `.lock` in the folder is locked and says who holds it; so is the folder itself, which
keeps others out when somebody removes the file by hand. File systems that cannot lock folders (NFS) or anything at all
do what they can.
"""

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from jaxbooth.console.progress import run_periodically
from jaxbooth.errors import UserError

LOCK = ".lock"
WATCH_SECONDS = 1.0  # between two looks at a locked folder
RETRY_SECONDS = 0.2  # for a lock file that its former holder has just removed
DELETION_SECONDS = 0.5  # from the file's removal until the folder is gone, too, if somebody deletes it
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # what such file systems answer


class InUseError(UserError):
    """Another process holds a folder."""


class FolderLock:
    """A folder that this process holds; the kernel frees it when the process is killed.

    Args:
        on_loss: called with a message, from any thread, when the folder or its lock file is gone.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written, or its `.lock` is not a regular file.
    """

    def __init__(self, folder: Path, on_loss: Callable[[str], None]):
        self.folder, self.path = folder, folder / LOCK
        self._on_loss, self._reporting = on_loss, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._file = FileLock(self.path, RETRY_SECONDS, thread_local=False, fallback_to_soft=False)
        try:
            self._acquire()
            self.path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
            self._file_stat = self.path.stat()
        except BaseException:
            self._close()
            raise

    def _acquire(self) -> None:
        """Locks the folder and the file."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise OSError(errno.EINVAL, f"its {LOCK} is not a file")
        in_use = InUseError(
            f"{self.folder} is being trained by {holder(self.path)}; wait for its end, or choose another --run-dir."
        )
        with suppress(OSError):  # network file systems do not lock folders
            if not lock_descriptor(self._descriptor, blocking=False):
                raise in_use
        try:
            self._file.acquire()
        except Timeout:
            raise in_use from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise

    def check(self) -> None:
        """Reports it if the folder or the file is gone."""
        loss = self.loss()
        if loss:
            with self._reporting:
                self._on_loss(loss)

    def loss(self) -> str | None:
        """Returns what has happened to the folder or the file, or None."""
        is_file_gone = is_replaced(self.path, self._file_stat)
        if is_file_gone:
            time.sleep(DELETION_SECONDS)
        if is_replaced(self.folder, os.fstat(self._descriptor)):
            return (
                f"{self.folder} was deleted or moved during the training; nothing more is written. Run the same "
                "command again: it continues if the folder is back in its place, and starts over if it is not."
            )
        if is_file_gone:
            return (
                f"{self.path} was removed during the training, so that another one could start in the same folder; "
                "nothing more is written. Run the same command again to continue from the last checkpoint."
            )
        return None

    def release(self) -> None:
        """Removes the lock file and frees the folder."""
        if not self.loss():
            self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._file.release()
        os.close(self._descriptor)


held_locks: list[FolderLock] = []  # of this process


@contextmanager
def locked(folder: Path, on_loss: Callable[[str], None]) -> Generator[None]:
    """Holds a folder while the block runs; see `FolderLock`."""
    lock = FolderLock(folder, on_loss)
    held_locks.append(lock)
    try:
        with run_periodically(WATCH_SECONDS, lock.check):
            yield
    finally:
        held_locks.remove(lock)
        lock.release()


def check_held(path: Path) -> None:
    """Checks, before something is written into a folder that this process holds, that the folder is still there."""
    for lock in held_locks:
        if path.is_relative_to(lock.folder):
            lock.check()


def is_replaced(path: Path, original: os.stat_result) -> bool:
    """Whether a path no longer leads to what it led to; a disk that does not answer tells nothing."""
    try:
        return not os.path.samestat(original, os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def holder(path: Path) -> str:
    """Returns who holds a lock file, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}"
    return "another process"


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock file, its own or that of a `FolderLock`.

    A file that nobody holds is locked for a moment. `FolderLock` tries again for longer than that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        return error.errno in WITHOUT_LOCKS  # nothing but the file tells
    finally:
        os.close(descriptor)
