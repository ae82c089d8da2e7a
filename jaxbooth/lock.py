"""One training at a time in a run folder."""

import fcntl
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jaxbooth.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Holds a folder's lock file while the block runs; the kernel lets go of it when a process is killed.

    The file says who holds it. Where the file system has no locks, as some network file systems, nothing is held.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = hold(path)
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def hold(path: Path) -> IO[str]:
    """Returns the opened lock file, locked."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{path.parent} is being trained by {holder(path)}; wait for its end, or choose another --run-dir."
            ) from None
        except OSError:
            return file  # a file system without locks
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # the former holder has removed this one in between


def holder(path: Path) -> str:
    """Says who holds a lock file."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"
