"""What a person sees: sentences, warnings and progress bars, on process 0 only."""

import shlex
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
from rich.console import Console
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

from jaxbooth.errors import printable

T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True, emoji=False)


def is_main() -> bool:
    """Whether this process speaks and writes for all of them."""
    return jax.process_index() == 0


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(text: str) -> None:
    """Prints one sentence."""
    if is_main():
        console.print(escape(printable(text)))


def shell_quoted(text: str) -> str:
    """Returns a word of a command that a user may copy to a shell; control characters are spelled as bash and zsh do.

    A terminal would not show those as they are.
    """
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    spelled = (letter if letter.isprintable() else rf"\U{ord(letter):08x}" for letter in escaped)
    return f"$'{''.join(spelled)}'"


def warn(text: str) -> None:
    """Prints one sentence that should not be missed."""
    if is_main():
        console.print(f"[bold yellow]warning:[/] {escape(printable(text))}")


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Replaces the text behind the bar."""
        self._progress.update(self._task, note=escape(text))


@contextmanager
def progress(phase: str, total: float | None, done: float = 0, transient: bool = False) -> Generator[Bar]:
    """Shows a bar with elapsed and remaining time while the block runs; without a `total`, elapsed time alone.

    Args:
        done: where the bar begins.
        transient: leave no line behind, for what happens inside of another bar.
    """
    columns = (
        TextColumn("{task.description:<10}"), BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=transient, disable=not is_main() or (transient and not console.is_terminal)
    ) as shown:
        yield Bar(shown, shown.add_task(phase, total=total, completed=int(done), note=""))


def track(phase: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Yields `items` under a progress bar."""
    with progress(phase, total) as bar:
        for item in items:
            yield item
            bar.advance()
