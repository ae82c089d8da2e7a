"""Output streams that may end: a closed pipe, a lost terminal or a full disk does not stop the work."""

import errno
import io
import os
import sys
from typing import Any, TextIO

TEMPORARY = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)  # errors that may be gone at the next line


class LenientFile(io.FileIO):
    """A file descriptor for writing; what cannot be written is dropped.

    When its reader is gone (`train | head -1`, a closed ssh session), the descriptor is pointed at nothing, so that
    child processes and libraries that write to it go on, too.
    """

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError as error:
            if error.errno not in TEMPORARY:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
            return size
        return size if written is None else written


def make_lenient(stream: TextIO | None) -> TextIO | None:
    """Returns a stream like this one, on a `LenientFile`; characters that it cannot encode are escaped."""
    try:
        descriptor = stream.fileno() if stream else None
    except (OSError, ValueError):
        return stream
    if stream is None or descriptor is None:
        return stream
    stream.flush()
    file = LenientFile(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "backslashreplace", line_buffering=True)


def protect_streams() -> None:
    """Makes this process's own output and error streams lenient."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = make_lenient(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = make_lenient(sys.stderr)
