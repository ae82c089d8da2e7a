"""The side of the benchmark that does the work: get ready, then run whenever it is this program's turn.

Needs the standard library alone, since every peer runs in an environment of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Subject(NamedTuple):
    """A program that is ready to be timed.

    Attributes:
        run: does `count` units of work (steps, or images), waits for the last one, and returns its seconds.
        facts: what does not change: device, versions.
        peak_bytes: most memory of the device used so far; None where nobody counts it.
        outside: share of the time that passes outside of the device's own work; None where that is not known.
    """

    run: Callable[[int], float]
    facts: dict[str, Any]
    peak_bytes: Callable[[], int | None]
    outside: Callable[[], float | None] = lambda: None


def serve(build: Callable[[], Subject]) -> None:
    """Builds the subject, runs one unit, and then answers each line "run N" or "end" on stdin by a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    began = time.perf_counter()
    subject = build()
    built = time.perf_counter()
    subject.run(1)
    first = time.perf_counter()
    answer(build_seconds=built - began, first_seconds=first - built, **subject.facts)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "end":
            break
        answer(seconds=subject.run(int(rest[0])))
    answer(peak_bytes=subject.peak_bytes(), outside=subject.outside())


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds that `work` takes; it waits for the device itself."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
