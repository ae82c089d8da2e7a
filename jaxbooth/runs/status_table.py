"""Subjects that train together, as a table that is redrawn on a terminal, and as lines of progress elsewhere."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxbooth.console.messages import is_main, pluralize
from jaxbooth.console.output import console, output
from jaxbooth.console.progress import ProgressBar, format_clock, progress_lines
from jaxbooth.errors import printable
from jaxbooth.runs.status import StateCounts

MAX_ROWS = 20
FRAME_ROWS = 8  # lines of a terminal that the table's frame and a bar below it take
REFRESHES = 2  # per second


class RunningSubject(NamedTuple):
    """A subject that is being trained.

    Attributes:
        step: the last one that is done.
        loss: of that step, if it is known.
        seconds_left: until its last step, if that is known.
    """

    name: str
    slot: int
    step: int
    steps: int
    loss: float | None = None
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        """How much of its steps is done."""
        return self.step / self.steps if self.steps else 0.0


def status_table(
    running: Sequence[RunningSubject], counts: StateCounts, per_hour: float | None, max_rows: int = MAX_ROWS
) -> Table:
    """Returns the table of the running subjects, in the order of their slots, under a line about all subjects.

    Args:
        per_hour: subjects an hour, if that is known.
        max_rows: subjects beyond these are one line.
    """
    title = status_line(counts, per_hour)
    left_out = len(running) - max_rows
    caption = f"and {left_out} more" if left_out > 0 else None
    table = Table(box=None, title=title, caption=caption, min_width=len(title), show_header=bool(running))
    table.title_justify = table.caption_justify = "left"
    table.add_column("subject", overflow="ellipsis")  # the only one that a narrow terminal shortens
    for heading in ("slot", "step", "loss", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for subject in sorted(running, key=lambda subject: subject.slot)[:max_rows]:
        loss = "–" if subject.loss is None else f"{subject.loss:.4f}"
        left = "–" if subject.seconds_left is None else format_clock(subject.seconds_left)
        step = f"{subject.step} of {subject.steps}"
        table.add_row(Text(printable(subject.name), no_wrap=True), str(subject.slot), step, loss, left)
    return table


def status_line(counts: StateCounts, per_hour: float | None) -> str:
    """Returns the number of subjects in each state, and how many are trained in an hour."""
    parts = [f"{number} {state}" for state, number in counts._asdict().items() if number or state != "preparing"]
    if per_hour is not None:
        parts.append(f"{per_hour:.3g} subjects/h" if per_hour < 1000 else f"{per_hour:,.0f} subjects/h")
    return ", ".join(parts)


class StatusDisplay:
    """What `status_display` shows.

    Args:
        lines: progress in steps of all subjects.
        steps: of each subject.
    """

    def __init__(self, lines: ProgressBar, running: Sequence[RunningSubject], counts: StateCounts, steps: int):
        self._lines, self._steps = lines, steps
        self._began, self._trained_before = time.monotonic(), trained_subjects(running, counts)
        self._running, self._counts = running, counts

    def update(self, running: Sequence[RunningSubject], counts: StateCounts) -> None:
        """Sets what is shown, which takes no time to speak of."""
        self._running, self._counts = running, counts
        self._lines.set_postfix(status_line(counts, self._per_hour()))
        self._lines.set_completed(self._steps * (trained_subjects(running, counts) + counts.failed))

    def table(self) -> Table:
        """Returns the table, as long as the terminal allows."""
        max_rows = max(1, min(MAX_ROWS, console.height - FRAME_ROWS))
        return status_table(self._running, self._counts, self._per_hour(), max_rows)

    def _per_hour(self) -> float | None:
        """Returns how many subjects' worth of steps are done in an hour, since this process began."""
        trained = trained_subjects(self._running, self._counts) - self._trained_before
        elapsed = time.monotonic() - self._began
        return 3600 * trained / elapsed if trained > 0 and elapsed > 0 else None


def trained_subjects(running: Sequence[RunningSubject], counts: StateCounts) -> float:
    """Returns the number of subjects that are done, with the shares of those that are running."""
    return counts.done + sum(subject.share for subject in running)


@contextmanager
def status_display(running: Sequence[RunningSubject], counts: StateCounts, steps: int) -> Generator[StatusDisplay]:
    """Shows how far many subjects are while the block runs: a table on a terminal, lines elsewhere and in the log file.

    Args:
        running, counts: when the block begins; what an earlier process did makes this one no faster.
        steps: of each subject.
    """
    total = steps * sum(counts)
    done = steps * (trained_subjects(running, counts) + counts.failed)
    with progress_lines(f"train {pluralize(sum(counts), 'subject')}", total, done) as lines:
        display = StatusDisplay(lines, running, counts, steps)
        is_live = is_main() and output.shows_bars
        live = Live(get_renderable=display.table, console=console, refresh_per_second=REFRESHES)
        with live if is_live else nullcontext():
            yield display
        lines.print_line()
