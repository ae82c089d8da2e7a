"""Messages, warnings and tables: on the terminal of process 0, and in the log file."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import IO

import jax
from jax._src.xla_bridge import backends_are_initialized  # asking for a process's number would initialize them
from rich.console import Console, RenderableType
from rich.markup import escape

from jaxbooth.console.output import console, output
from jaxbooth.errors import printable

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
LOG_WIDTH = 100  # characters of a table in the log file


def is_main() -> bool:
    """Whether this is process 0, which prints and writes files for all processes; before they join, each is alone."""
    if not (backends_are_initialized() or jax.distributed.is_initialized()):
        return True
    return jax.process_index() == 0


def pluralize(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextmanager
def collect_warnings() -> Generator[list[str]]:
    """Yields a list that gets the warnings of the block; here, in this context alone, nothing is printed."""
    collected: list[str] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def info(text: str) -> None:
    """Prints a message, unless --quiet is set."""
    if is_main() and _collected.get() is None:
        text = printable(text)
        output.log(text)
        if not output.quiet:
            console.print(escape(text))


def print_result(text: str) -> None:
    """Prints a result, which --quiet does not suppress."""
    if is_main():
        text = printable(text)
        output.log(text)
        if not output.muted_now:
            console.print(escape(text))


def shell_quote(text: str) -> str:
    """Returns a word as a user can copy it into a shell; control characters are escaped as bash and zsh read them."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    characters = (character if character.isprintable() else rf"\U{ord(character):08x}" for character in escaped)
    return f"$'{''.join(characters)}'"


def warn(text: str, on_any_process: bool = False) -> None:
    """Prints a warning.

    Args:
        on_any_process: it is about the work of this process alone.
    """
    collected = _collected.get()
    if collected is not None:
        collected.append(text)
    elif is_main() or on_any_process:
        text = printable(text)
        output.log(f"warning: {text}")
        if not output.muted_now:
            console.print(f"[bold yellow]warning:[/] {escape(text)}")


def show_table(table: RenderableType) -> None:
    """Prints a table, as wide as the terminal at most."""
    if is_main():
        log_console = Console(width=LOG_WIDTH, color_system=None)
        with log_console.capture() as captured:
            log_console.print(table)
        output.log(captured.get().rstrip("\n"))
        console.print(table, soft_wrap=False)


def print_plain(text: str, file: IO[str] | None = None) -> None:
    """Prints on this process, whichever it is, from any thread; an output that is closed is ignored."""
    with suppress(OSError, ValueError):
        print(text, file=file or sys.stdout, flush=True)
    output.log(text)


def print_stderr(text: str) -> None:
    """Prints on the error stream; see `print_plain`."""
    print_plain(text, sys.stderr)
