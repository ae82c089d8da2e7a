"""Progress of a command's phases: a moving bar on a terminal, lines elsewhere and in the log file."""

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
SILENCE = 25.0  # seconds after which a phase writes a line where there is no bar
SHARE = 0.05  # of a phase, after which it does so, too,
PAUSE = 2.0  # unless less than this many seconds have passed


@contextmanager
def run_periodically(seconds: float, action: Callable[[], None]) -> Generator[None]:
    """Calls a function again and again, from a thread of its own, while the block runs."""
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
    """Progress of one phase: a moving bar on a terminal, a line now and then elsewhere and in the log file.

    Args:
        phase: its name.
        total: what it ends with; None: unknown.
        done: what it begins with.
        bar: the moving bar, if there is one.
        speaks: whether it writes lines.
    """

    def __init__(self, phase: str, total: float | None, done: float, bar: tuple[Progress, TaskID] | None, speaks: bool):
        self._phase, self._total, self._first, self._done, self._postfix = phase, total, done, done, ""
        self._bar, self._speaks, self._lock = bar, speaks, threading.RLock()
        self._began = self._spoke = output.spoke = time.monotonic()
        self._shares = self._share()

    def advance(self, amount: float = 1) -> None:
        """Moves on."""
        self.set_completed(self._done + amount)

    def set_completed(self, done: float) -> None:
        """Moves to where `done` is done."""
        with self._lock:
            self._done = done
            if self._bar:
                self._bar[0].update(self._bar[1], completed=done)
            is_over = self._total is not None and done >= self._total  # the end has a line of its own
            if self._share() > self._shares and time.monotonic() - self._spoke >= PAUSE and not is_over:
                self.speak()

    def set_postfix(self, text: str) -> None:
        """Replaces the text behind it."""
        self._postfix = text
        if self._bar:
            self._bar[0].update(self._bar[1], postfix=escape(text))

    def break_silence(self) -> None:
        """Writes a line if the last one is long ago, and nothing runs inside of this phase."""
        with self._lock:
            if running and running[-1] is self and time.monotonic() - output.spoke >= SILENCE:
                self.speak()

    def speak(self) -> None:
        """Writes a line, where lines are written."""
        if not self._speaks:
            return
        self._spoke, self._shares = time.monotonic(), self._share()
        line = self.line(self._spoke)
        output.log(line)
        if output.shows_lines:
            console.print(escape(line))

    def line(self, now: float) -> str:
        """Returns how far it is: phase, amount, note, and times."""
        spent, parts = now - self._began, []
        if self._total:
            parts.append(f"{self._done:.0f} of {self._total:.0f} ({self._done / self._total:.0%})")
        parts += [self._postfix] if self._postfix else []
        parts.append(f"{format_duration(spent)} elapsed")
        if self._total and self._first < self._done < self._total:
            parts.append(f"{format_duration(spent / (self._done - self._first) * (self._total - self._done))} left")
        return f"{self._phase}: {', '.join(parts)}"

    def _share(self) -> int:
        """How many times `SHARE` is done."""
        return int(self._done / self._total / SHARE) if self._total else 0


running: list[ProgressBar] = []  # phases, each inside of the one before it


def format_duration(seconds: float) -> str:
    """Returns hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


@contextmanager
def progress(phase: str, total: float | None, done: float = 0, transient: bool = False) -> Generator[ProgressBar]:
    """Shows how far the block is, with elapsed and remaining time; without a `total`, elapsed time alone.

    Where there is no terminal, it writes a line for every 5 % of the work, a line when nothing was written for half a
    minute, whatever the main thread waits for, and one at its end.

    Args:
        done: where it begins.
        transient: leave no line behind, for what happens inside of another phase.
    """
    columns = (
        TextColumn("{task.description:<10}"), BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[postfix]}"),
    )  # fmt: skip
    speaks = is_main() and (output.shows_lines or output.logs)
    moves = is_main() and output.shows_bars
    with Progress(*columns, console=console, transient=transient, disable=not moves) as shown:
        task = shown.add_task(phase, total=total, completed=int(done), postfix="")
        bar = ProgressBar(phase, total, done, (shown, task) if moves else None, speaks)
        running.append(bar)
        try:
            with run_periodically(1.0, bar.break_silence) if speaks else nullcontext():
                yield bar
        finally:
            running.remove(bar)
        if not transient:
            bar.speak()


@contextmanager
def heartbeat() -> Generator[None]:
    """Breaks the silence of a whole command wherever no phase of its own does; also a decorator."""
    if not is_main() or not (output.shows_lines or output.logs):
        yield
        return
    bar = ProgressBar("working", None, 0, None, speaks=True)
    running.append(bar)
    try:
        with run_periodically(1.0, bar.break_silence):
            yield
    finally:
        running.remove(bar)


def track(phase: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Yields `items` under a progress bar."""
    with progress(phase, total) as bar:
        for item in items:
            yield item
            bar.advance()
