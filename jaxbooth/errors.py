"""The two errors that end a command early, and how messages are printed: one line that any terminal can show."""

import reprlib
import unicodedata
from typing import Any

MAX_MESSAGE = 500  # characters of a printed error
KEPT_END = 150  # characters at the end of a long message, which say what to do
JOINERS = "\u200c\u200d"  # which Persian and emoji need
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: control, format, surrogates, line separators


class UserError(Exception):
    """The input cannot be used as it is. The message names the file, key or flag and what to do. Exit code 2."""


class RunFailure(Exception):
    """The input was fine, but the work failed (non-finite loss, full disk). Exit code 1."""


def printable(text: str) -> str:
    """Returns text with escapes for characters that a terminal would interpret or cannot show."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN and character not in JOINERS
        else character
        for character in text
    )


def format_message(message: str) -> str:
    """Returns a message as it is printed: one line of at most MAX_MESSAGE characters, shortened in the middle."""
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ... {message[-KEPT_END:]}"
    text = printable(message)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - KEPT_END - 5]} ... {text[-KEPT_END:]}"


class ShortRepr(reprlib.Repr):
    """A `repr` of bounded length, also of values that are huge or contain themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 3

    def repr_int(self, x: int, level: int) -> str:
        """Describes numbers that Python refuses to write out."""
        return f"a number of {x.bit_length()} bits" if x.bit_length() > 256 else repr(x)


def short_repr(value: Any) -> str:
    """Returns a value's `repr`, shortened."""
    return ShortRepr().repr(value)
