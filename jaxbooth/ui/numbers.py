"""Numbers in addresses and forms, which may hold anything."""

from jaxbooth.errors import UserError
from jaxbooth.ui.roots import NotFound

MAX_DIGITS = 18  # beyond, nothing is counted here


def read_number(text: str) -> int | None:
    """Reads a whole number that is not negative; None where the text is anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


def number_in_path(text: str) -> int:
    """Reads a number of an address.

    Raises:
        NotFound: it is none.
    """
    number = read_number(text)
    if number is None:
        raise NotFound(text)
    return number


def number_in_form(text: str, what: str, least: int, most: int) -> int:
    """Reads a number that was typed.

    Raises:
        UserError: it is none, or out of its range.
    """
    number = read_number(text.strip())
    if number is None or not least <= number <= most:
        raise UserError(f"{what} must be a whole number from {least} to {most}.")
    return number
