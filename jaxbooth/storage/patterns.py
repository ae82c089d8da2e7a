"""Regular expressions from users and files are matched in a child process, which can be stopped.

Python's `re` cannot be interrupted while it backtracks, and ten characters are enough to keep it busy for years.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache

from jaxbooth.errors import UserError, short_repr

MAX_PATTERN = 1000  # characters
MAX_PATTERNS = 10_000
TIMEOUT_SECONDS = 10  # for all expressions of a source; a thousand ordinary ones take less than 1 s

# patterns, texts -> for each text, the number of the first pattern that matches all of it; or the number and the
# reason of one that is no expression
CHILD = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
found = [None] * len(texts)
for number, pattern in enumerate(patterns):
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        print(json.dumps([number, str(error)]))
        sys.exit()
    for index, text in enumerate(texts):
        if found[index] is None and expression.fullmatch(text):
            found[index] = number
print(json.dumps([None, found]))
"""


@lru_cache(maxsize=64)
def first_matches(
    patterns: tuple[str, ...], texts: tuple[str, ...], source: str, seconds: float = TIMEOUT_SECONDS
) -> Sequence[int | None]:
    """Returns for each text the number of the first expression that matches all of it, or None.

    Args:
        source: what the expressions come from, as messages name it.
        seconds: that all of it may take.

    Raises:
        UserError: one is not a regular expression or too long, there are too many, or they take too long.
    """
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f"{source} holds {len(patterns)} expressions, and {MAX_PATTERNS} is the most.")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN:
            raise UserError(f"{source} {short_repr(pattern)} is longer than {MAX_PATTERN} characters.")
    command = [sys.executable, "-I", "-S", "-c", CHILD]
    try:
        done = subprocess.run(
            command, input=json.dumps([patterns, texts]), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        shown = short_repr(patterns[0] if len(patterns) == 1 else patterns)
        raise UserError(
            f"{source} {shown} takes more than {seconds:g} s to match; "
            "write it without repetitions inside of repetitions."
        ) from None
    if done.returncode:
        raise UserError(f"{source} {short_repr(patterns)} cannot be matched ({short_repr(done.stderr[-200:])}).")
    number, found = json.loads(done.stdout)
    if number is not None:
        raise UserError(f"{source} {short_repr(patterns[number])} is not a regular expression ({found}).")
    return found
