"""The two ways a command ends early; the command line turns each into one sentence and an exit code."""

import reprlib
import unicodedata
from typing import Any

MAX_MESSAGE = 500  # characters of a printed error
KEPT_END = 150  # of them, at its end: what to do
JOINERS = "\u200c\u200d"  # of Persian and of emoji
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format and direction, half characters, line separators


class UserError(Exception):
    """The input cannot be used as it is. The message names the file, key or flag and what to do. Exit code 2."""


class RunFailure(Exception):
    """The input was fine, but the work failed (non-finite loss, full disk). Exit code 1."""


def printable(text: str) -> str:
    """Returns text without anything that a terminal would obey or cannot show: such characters become escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN and character not in JOINERS
        else character
        for character in text
    )


def format_message(message: str) -> str:
    """Returns a message as it is printed: one line of at most MAX_MESSAGE characters; the middle is what goes."""
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ... {message[-KEPT_END:]}"
    text = printable(message)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - KEPT_END - 5]} ... {text[-KEPT_END:]}"


class ShortRepr(reprlib.Repr):
    """Writes a value from outside in a few words, whatever its size and however often it holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 3

    def repr_int(self, x: int, level: int) -> str:
        """Leaves out digits that Python itself refuses to write."""
        return f"a number of {x.bit_length()} bits" if x.bit_length() > 256 else repr(x)


def short_repr(value: Any) -> str:
    """Returns `repr(value)`, shortened."""
    return ShortRepr().repr(value)
