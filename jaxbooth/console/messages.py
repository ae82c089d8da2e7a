"""What a person sees: sentences, warnings, progress and tables, on process 0 only; and the log file that keeps them."""

import shlex
import sys
from contextlib import suppress
from typing import IO

import jax
from rich.console import Console, RenderableType
from rich.markup import escape

from jaxbooth.console.output import console, output
from jaxbooth.errors import printable

LOG_WIDTH = 100  # characters of a table in the log file


def is_main() -> bool:
    """Whether this process speaks and writes for all of them."""
    return jax.process_index() == 0


def pluralize(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def info(text: str) -> None:
    """Prints one sentence, unless the user wants quiet."""
    if is_main():
        text = printable(text)
        output.log(text)
        if not output.quiet:
            console.print(escape(text))


def print_result(text: str) -> None:
    """Prints one sentence that a command was run for."""
    if is_main():
        text = printable(text)
        output.log(text)
        console.print(escape(text))


def shell_quote(text: str) -> str:
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
        text = printable(text)
        output.log(f"warning: {text}")
        console.print(f"[bold yellow]warning:[/] {escape(text)}")


def show_table(table: RenderableType) -> None:
    """Prints a table, within the width of the terminal."""
    if is_main():
        paper = Console(width=LOG_WIDTH, color_system=None)
        with paper.capture() as captured:
            paper.print(table)
        output.log(captured.get().rstrip("\n"))
        console.print(table, soft_wrap=False)


def print_plain(text: str, file: IO[str] | None = None) -> None:
    """Prints on this process, whichever it is and from any thread, if anyone reads it."""
    with suppress(OSError, ValueError):
        print(text, file=file or sys.stdout, flush=True)
    output.log(text)


def print_stderr(text: str) -> None:
    """As `print_plain`, on the error stream."""
    print_plain(text, sys.stderr)
