"""What a job does now, read from the lines of progress that commands print where there is no terminal."""

import re
from collections.abc import Iterable
from typing import NamedTuple

CLOCK = r"(\d{1,6}):(\d\d):(\d\d)"
# As `console.progress.ProgressBar.line` writes them: "train: 12 of 200 (6%), loss 0.1, 0:00:10 elapsed, 0:01:02 left".
LINE = re.compile(
    rf"(?P<phase>[a-z][a-z ]{{0,30}}): (?:(?P<done>\d{{1,12}}) of (?P<total>\d{{1,12}}) \(\d+%\), )?"
    rf"(?P<postfix>.*?),? ?{CLOCK} elapsed(?:, {CLOCK} left)?"
)
TRAIN = "train"  # the phase of the steps, whose progress the metrics tell better
WORDS = {
    TRAIN: "training",
    "compile": "compiling the train step",
    "fetch": "downloading the model",
    "convert": "preparing the model",
    "load": "loading the model",
    "prior": "generating class images",
    "encode": "encoding the photos",
    "sample": "generating images",
    "measure": "measuring the images",
    "held out": "measuring the held-out images",
    "save": "saving",
    "restore": "reading the checkpoint",
    "export": "writing the result",
    "verify": "checking the result",
    "working": "preparing",
}


class Phase(NamedTuple):
    """A line of progress.

    Attributes:
        done, total: of its work, where that is counted.
        seconds_left: until its end, where that can be told.
    """

    name: str
    done: int | None
    total: int | None
    seconds_left: int | None

    @property
    def words(self) -> str:
        """The phase in words."""
        return WORDS.get(self.name, self.name)


def last_phase(lines: Iterable[str]) -> Phase | None:
    """Returns the newest line of progress since the job was last started."""
    for line in reversed(list(lines)):
        if line.startswith("--- "):  # begins what a start has printed
            return None
        match = LINE.fullmatch(line)
        if match:
            *_, hours, minutes, seconds = match.groups()
            left = None if hours is None else 3600 * int(hours) + 60 * int(minutes) + int(seconds)
            return Phase(match["phase"], number(match["done"]), number(match["total"]), left)
    return None


def number(digits: str | None) -> int | None:
    """Returns the number of digits that may be missing."""
    return None if digits is None else int(digits)
