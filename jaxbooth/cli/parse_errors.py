"""What tyro prints about arguments that it cannot parse becomes one message."""

import re
from itertools import dropwhile, takewhile

from jaxbooth.errors import short_repr

EDGE, RULE, COLOR = "│", re.compile(r"[─\-]{5,}"), re.compile(r"\x1b\[[0-9;]*m")
FLAG = re.compile(r"Error parsing (?P<flag>--[\w.-]+):")
NUMBERS = {
    r"invalid literal for int\(\) with base 10: '([^']*)": "is not a whole number",
    r"could not convert string to float: '([^']*)": "is not a number",
}
MISSING = re.compile(r"Missing from (?P<command>jaxbooth \w+): (?P<arguments>.*\(required\))")
REQUIRED = re.compile(r"(?P<flag>--[\w-]+ )?[A-Z]+ (?P<help>.+?)\.? \(required\)")
TOO_LONG = "Exceeds the limit"  # of digits, Python's own


def parse_error(printed: str, command: str) -> str:
    """Returns the message for what tyro printed.

    Args:
        command: whose help lists the flags, such as `jaxbooth train`.
    """
    text = first_part(printed)
    missing = MISSING.match(text)
    if missing:
        needs = " and ".join(map(describe_argument, REQUIRED.finditer(missing["arguments"])))
        return f"{missing['command']} needs {needs}; see `{command} --help`."
    flag = FLAG.match(text)
    if flag and TOO_LONG in text:
        return f"{flag['flag']} has thousands of digits, and no number needs as many."
    for pattern, problem in NUMBERS.items():
        value = re.search(pattern, text)
        if flag and value:
            return f"{flag['flag']} {short_repr(value[1])} {problem}."
    return f"{text[:1].lower()}{text[1:].rstrip('.:')}; see `{command} --help`."


def describe_argument(argument: re.Match[str]) -> str:
    """Returns a flag with its help in brackets, or the help alone for an argument without a name."""
    help_text = argument["help"][:1].lower() + argument["help"][1:]
    return f"{argument['flag']}({help_text})" if argument["flag"] else f"a {help_text}"


def first_part(printed: str) -> str:
    """Returns the first part of tyro's box, below the title, as one line.

    A ruled line ends it. If the terminal's encoding has no box characters, another one follows the title.
    """
    lines = [line.strip().strip(EDGE).strip() for line in COLOR.sub("", printed).splitlines()[1:]]
    filled = (line for line in lines if line)
    kept = dropwhile(RULE.match, filled)
    return " ".join(takewhile(lambda line: not RULE.match(line), kept))
