"""The end of a file that grows."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def read_tail(path: Path, size: int) -> bytes:
    """Returns up to `size` bytes at the end of a file; none of a link, which may lead anywhere."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                file.seek(max(0, status.st_size - size))
                return file.read(size)
    return b""
