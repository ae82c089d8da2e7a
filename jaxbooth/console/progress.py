"""Progress of the phases of a command: a moving bar on a terminal, lines elsewhere and in the log file."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxbooth.console.messages import is_main
from jaxbooth.console.output import console, output

T = TypeVar("T")
# Without a moving bar, a phase prints a line after each 5 % of its work, or 25 s after the last line of any phase.
LINE_SHARE = 0.05
SILENCE_SECONDS = 25.0
MIN_SECONDS = 2.0  # between two lines of a phase


@contextmanager
def run_periodically(seconds: float, action: Callable[[], None]) -> Generator[None]:
    """Calls a function every few seconds, from another thread, while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class ProgressBar:
    """Progress of one phase: a moving bar on a terminal, lines elsewhere and in the log file.

    Args:
        phase: its name.
        total: amount of work; None: unknown.
        done: work that was done before.
        bar: rich's progress display and the phase's task in it, if bars are shown.
        prints_lines: whether lines are printed.
    """

    def __init__(
        self, phase: str, total: float | None, done: float, bar: tuple[Progress, TaskID] | None, prints_lines: bool
    ):
        self._phase, self._total, self._start, self._done = phase, total, done, done
        self._postfix = ""
        self._bar, self._prints_lines = bar, prints_lines
        self._lock = threading.RLock()
        self._began = self._last_line = output.last_output = time.monotonic()
        self._shares_printed = self._shares_done()

    def advance(self, amount: float = 1) -> None:
        """Adds to the work done."""
        self.set_completed(self._done + amount)

    def set_completed(self, done: float) -> None:
        """Sets the work done."""
        with self._lock:
            self._done = done
            if self._bar:
                display, task = self._bar
                display.update(task, completed=done)
            is_over = self._total is not None and done >= self._total  # `progress` prints the last line
            is_due = self._shares_done() > self._shares_printed and time.monotonic() - self._last_line >= MIN_SECONDS
            if is_due and not is_over:
                self.print_line()

    def set_postfix(self, text: str) -> None:
        """Sets the text after the bar."""
        self._postfix = text
        if self._bar:
            display, task = self._bar
            display.update(task, postfix=escape(text))

    def print_if_silent(self) -> None:
        """Prints a line if nothing was printed for a while and no other phase runs inside of this one."""
        with self._lock:
            is_innermost = bool(running) and running[-1] is self
            if is_innermost and time.monotonic() - output.last_output >= SILENCE_SECONDS:
                self.print_line()

    def print_line(self) -> None:
        """Prints a line, if lines are printed."""
        if not self._prints_lines:
            return
        self._last_line = time.monotonic()
        self._shares_printed = self._shares_done()
        line = self.line(self._last_line)
        output.log(line)
        if output.shows_lines:
            console.print(escape(line))

    def line(self, now: float) -> str:
        """Returns the phase's name, the work done, the postfix, and the elapsed and remaining time."""
        elapsed = now - self._began
        parts = []
        if self._total:
            parts.append(f"{self._done:.0f} of {self._total:.0f} ({self._done / self._total:.0%})")
        if self._postfix:
            parts.append(self._postfix)
        parts.append(f"{format_clock(elapsed)} elapsed")
        if self._total and self._start < self._done < self._total:
            remaining = elapsed / (self._done - self._start) * (self._total - self._done)
            parts.append(f"{format_clock(remaining)} left")
        return f"{self._phase}: {', '.join(parts)}"

    def _shares_done(self) -> int:
        """Returns how many times `LINE_SHARE` of the work is done."""
        return int(self._done / self._total / LINE_SHARE) if self._total else 0


running: list[ProgressBar] = []  # each phase runs inside of the one before it


def format_clock(seconds: float) -> str:
    """Returns a duration as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


@contextmanager
def progress(phase: str, total: float | None, done: float = 0, transient: bool = False) -> Generator[ProgressBar]:
    """Shows the progress of a block, with elapsed and remaining time; without a `total`, only the elapsed time.

    Without a terminal, it prints a line after each 5 % of the work, one after 25 s of silence even while the main
    thread waits, and one at its end.

    Args:
        done: work that was done before.
        transient: print no line at the end, for a phase inside of another one.
    """
    columns = (
        TextColumn("{task.description:<10}"), BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[postfix]}"),
    )  # fmt: skip
    shows_bar = is_main() and output.shows_bars
    with Progress(*columns, console=console, transient=transient, disable=not shows_bar) as display:
        task = display.add_task(phase, total=total, completed=int(done), postfix="")
        with progress_lines(phase, total, done, (display, task) if shows_bar else None) as bar:
            yield bar
        if not transient:
            bar.print_line()


@contextmanager
def progress_lines(
    phase: str, total: float | None, done: float = 0, bar: tuple[Progress, TaskID] | None = None
) -> Generator[ProgressBar]:
    """Prints the lines of `progress`, all but the one at the end, for a block that shows something else on a terminal.

    Args:
        done: work that was done before.
        bar: rich's progress display and the phase's task in it, if bars are shown.
    """
    prints_lines = is_main() and (output.shows_lines or output.logs)
    lines = ProgressBar(phase, total, done, bar, prints_lines)
    running.append(lines)
    try:
        with run_periodically(1.0, lines.print_if_silent) if prints_lines else nullcontext():
            yield lines
    finally:
        running.remove(lines)


@contextmanager
def heartbeat() -> Generator[None]:
    """Prints a line now and then while a command works outside of all phases; also a decorator."""
    with progress_lines("working", None):
        yield


def track(phase: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Yields `items` and shows how many are done."""
    with progress(phase, total) as bar:
        for item in items:
            yield item
            bar.advance()
