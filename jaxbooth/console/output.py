"""Where messages go: the terminal, and the file of `--log-file`."""

import errno
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape

from jaxbooth.errors import UserError

console = Console(highlight=False, soft_wrap=True, emoji=False)


class Output:
    """The state of the output.

    Attributes:
        quiet: show only warnings, errors and results.
        log_file: the file that all lines are appended to, or None.
        last_output: time of the last line (`time.monotonic`).
        muted_now: see `muted`.
    """

    def __init__(self) -> None:
        self.quiet = self.muted_now = False
        self.log_file: Path | None = None
        self.last_output = time.monotonic()
        self._file: IO[str] | None = None

    def configure(self, quiet: bool, log_file: Path | None) -> None:
        """Sets both and opens the file.

        Raises:
            UserError: the file cannot be written.
        """
        self.quiet, self.log_file = quiet, log_file
        if self._file:
            self._file.close()
            self._file = None
        if log_file is None:
            return
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            if log_file.is_fifo():  # opening one waits for a reader
                raise OSError(errno.EINVAL, "Is a pipe")
            self._file = log_file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--log-file {log_file} cannot be written ({reason}); choose another.") from None

    @contextmanager
    def muted(self) -> Generator[None]:
        """Shows nothing but errors while the block runs; the log file gets all."""
        former = self.quiet, self.muted_now
        self.quiet = self.muted_now = True
        try:
            yield
        finally:
            self.quiet, self.muted_now = former

    @property
    def logs(self) -> bool:
        """Whether there is a log file."""
        return self._file is not None

    @property
    def shows_bars(self) -> bool:
        """Whether progress is shown as moving bars."""
        return console.is_terminal and not self.quiet

    @property
    def shows_lines(self) -> bool:
        """Whether progress is shown as lines."""
        return not console.is_terminal and not self.quiet

    def log(self, text: str) -> None:
        """Appends lines, with the time, to the log file; if that fails, a warning is printed and logging ends."""
        self.last_output = time.monotonic()
        if self._file is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            self._file.write("".join(f"{now} {line.rstrip()}\n" for line in text.split("\n")))
        except (OSError, ValueError) as error:
            self._file = None
            console.print(f"[bold yellow]warning:[/] {escape(f'--log-file {self.log_file} ends here: {error}')}")


output = Output()
