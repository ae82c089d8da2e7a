"""How far each of many subjects is: `status.jsonl`, to which each change of a subject appends one line.

The last line about a subject counts.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.storage.disk import with_filename
from jaxbooth.storage.text import parse_json_object, read_bytes

State = Literal["queued", "preparing", "running", "done", "failed"]
MAX_NAMED = 5  # failed subjects of a summary
MAX_SENTENCE = 160  # characters of the error of each of them
Count = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True)
class SubjectStatus:
    """One line of the log.

    Attributes:
        time: in seconds since 1970.
        step: the last one that is done.
        steps: how many there will be.
        slot: the place in the batch of subjects that are trained together.
        error: why it failed, in a sentence.
    """

    time: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    name: Annotated[str, Field(strict=True)]
    state: State
    step: Count | None = None
    steps: Count | None = None
    slot: Count | None = None
    error: Annotated[str, Field(strict=True)] | None = None


ADAPTER = TypeAdapter(SubjectStatus)


class StatusLog:
    """Appends to a status file. Process 0 only; any of its threads may add a line.

    Args:
        path: a local file; on an object store, nothing can be appended.
        clock: returns the time, in seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self._active, self._clock = is_writer(), clock
        if not self._active:
            return
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        was_cut_short = path.exists() and not (read_bytes(path) or b"\n").endswith(b"\n")
        self._file = path.open("ab")
        if was_cut_short:
            self._write(b"\n")

    def add(
        self,
        name: str,
        state: State,
        step: int | None = None,
        steps: int | None = None,
        slot: int | None = None,
        error: str | None = None,
    ) -> SubjectStatus:
        """Appends a line about a subject, puts it on disk and returns it; what is None is left out."""
        status = SubjectStatus(self._clock(), name, state, step, steps, slot, error)
        if self._active:
            values = {key: value for key, value in asdict(status).items() if value is not None}
            with self._lock:
                self._write(json.dumps(values).encode() + b"\n")
        return status

    def close(self) -> None:
        """Closes the file."""
        if self._active:
            with with_filename(self._path):
                self._file.close()

    def _write(self, content: bytes) -> None:
        """Appends bytes and flushes them."""
        with with_filename(self._path):
            self._file.write(content)
            self._file.flush()


def read_status(path: Path) -> dict[str, SubjectStatus]:
    """Returns subject -> its last line; none where there is no file. Unreadable lines are left out.

    Raises:
        UserError: it is no regular file, or cannot be opened.
    """
    statuses: dict[str, SubjectStatus] = {}
    for raw in read_bytes(path).split(b"\n") if path.exists() else []:
        try:
            status = ADAPTER.validate_python(parse_json_object(raw.decode("utf-8-sig"), str(path)))
        except (UserError, UnicodeDecodeError, ValidationError):
            continue
        statuses[status.name] = status
    return statuses


class StateCounts(NamedTuple):
    """How many subjects are in each state."""

    queued: int = 0
    preparing: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0

    @property
    def finished(self) -> int:
        """How many are done or failed."""
        return self.done + self.failed


def count_states(statuses: Mapping[str, SubjectStatus], names: Iterable[str]) -> StateCounts:
    """Counts the states of the named subjects; one without a status is queued."""
    return StateCounts(**Counter(statuses[name].state if name in statuses else "queued" for name in names))


class Outcome(NamedTuple):
    """How some subjects ended.

    Attributes:
        done: how many are.
        failed: how many did.
        unfinished: how many are neither.
        failures: some of those that failed, each with its error.
    """

    done: int = 0
    failed: int = 0
    unfinished: int = 0
    failures: Sequence[str] = ()

    @classmethod
    def sum(cls, outcomes: Iterable["Outcome"]) -> "Outcome":
        """Returns the outcome of all subjects together."""
        done, failed, unfinished, failures = zip(*outcomes, strict=True)
        return cls(sum(done), sum(failed), sum(unfinished), tuple(itertools.chain(*failures)))

    @property
    def sentence(self) -> str:
        """Says how many are done, and which failed, and why."""
        parts = [f"{self.done} of {self.done + self.failed + self.unfinished} done"]
        if self.unfinished:
            parts.append(f"{self.unfinished} not finished")
        if self.failed:
            others = f", and {self.failed - MAX_NAMED} more" if self.failed > MAX_NAMED else ""
            parts.append(f"{self.failed} failed: {', '.join(self.failures[:MAX_NAMED])}{others}")
        return ", ".join(parts) + "."


def outcome_of(statuses: Mapping[str, SubjectStatus], names: Iterable[str]) -> Outcome:
    """Returns the outcome of the named subjects."""
    ordered = list(names)
    counts = count_states(statuses, ordered)
    failed = [statuses[name] for name in ordered if name in statuses and statuses[name].state == "failed"]
    failures = tuple(map(describe_failure, failed[:MAX_NAMED]))
    return Outcome(counts.done, counts.failed, len(ordered) - counts.finished, failures)


def describe_failure(status: SubjectStatus) -> str:
    """Returns a failed subject with its error, which becomes one line and is shortened."""
    error = " ".join((status.error or "").split()).removesuffix(".")
    if len(error) > MAX_SENTENCE:
        error = f"{error[:MAX_SENTENCE]} ..."
    return f"{status.name} ({error})" if error else status.name
