"""Metrics and images on disk: `metrics.jsonl`, TensorBoard, sample grids. Process 0 only."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxbooth.console.messages import pluralize, warn
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.runs.tensorboard import EventWriter
from jaxbooth.storage.disk import with_filename
from jaxbooth.storage.files import write_bytes, write_png
from jaxbooth.storage.remote import is_local, staging_folder, upload
from jaxbooth.storage.text import parse_json_object, read_bytes

VALIDATION = "validation.jsonl"
SECONDS = 1.0  # after which lines are put on disk, so that whoever watches sees them
UNREADABLE = ".unreadable"  # behind a log's name: its lines that are no metrics of a step
SUPERSEDED = ".superseded"  # its lines of steps that were done again, from an earlier checkpoint or other settings


class JsonLinesLog:
    """A file of JSON lines that grows. Lines of steps after `step` make room: they will be done again.

    Nothing is lost: those lines are kept in a file beside it, and what cannot be read in another.

    Attributes:
        steps: of the lines that an earlier process wrote and that stay.
    """

    def __init__(self, path: Path, step: int):
        lines = read_log(path)
        current = [line for line in lines.entries if line.step <= step]
        self.steps = {line.step for line in current}
        append_lines(path.with_name(path.name + SUPERSEDED), [line.raw for line in lines.entries if line.step > step])
        append_lines(path.with_name(path.name + UNREADABLE), lines.unreadable)
        if lines.unreadable:
            warn(
                f"{pluralize(len(lines.unreadable), 'line')} of {path} cannot be read; "
                f"kept in {path.name + UNREADABLE}."
            )
        write_bytes(path, b"".join(line.raw + b"\n" for line in current))
        self._path, self._file = path, path.open("a", encoding="utf-8")
        self._flushed = time.monotonic()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line; others see it after about a second, or with the next one."""
        with with_filename(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts everything on disk."""
        with with_filename(self._path):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        with with_filename(self._path):
            self._file.close()


class MetricWriter:
    """Appends to a run folder's logs: metrics of every step, and those of every validation beside them."""

    def __init__(self, metrics: Path, tensorboard: Path, step: int):
        self._active = is_writer()
        if not self._active:
            return
        self._remote, self._staging = metrics.parent, ExitStack()
        if not is_local(metrics):  # nothing can be appended there
            self._local = self._staging.enter_context(staging_folder(metrics.parent))
            for name in (log + end for log in (metrics.name, VALIDATION) for end in ("", SUPERSEDED, UNREADABLE)):
                if (metrics.parent / name).exists():
                    write_bytes(self._local / name, (metrics.parent / name).read_bytes())
            metrics, tensorboard = self._local / metrics.name, self._local / tensorboard.name
        self._pending: tuple[int, dict[str, float]] | None = None  # the newest step's line, which may get more values
        self._metrics = JsonLinesLog(metrics, step)
        self._validations = JsonLinesLog(metrics.parent / VALIDATION, step or -1)  # step 0 is validated again, too
        self._events, self._events_folder = EventWriter(tensorboard, step), tensorboard

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        if self._active:
            self._write_pending()
            self._pending = (step, dict(values))
            self._add_scalars(step, values)

    def extend_step(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the line of the step that was logged last; no curves, which `log_validation` has for them."""
        if self._active and self._pending and self._pending[0] == step:
            self._pending[1].update(values)

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of one validation."""
        if self._active:
            self._validations.add(step, values)
            self._add_scalars(step, values)

    def has_validation(self, step: int) -> bool:
        """Whether an earlier process logged the validation of a step; process 0 alone knows."""
        return self._active and step in self._validations.steps

    def _write_pending(self) -> None:
        """Appends the newest step's line to its log."""
        if self._pending:
            self._metrics.add(*self._pending)
            self._pending = None

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each value."""
        with with_filename(self._events_folder):
            for name, value in values.items():
                self._events.scalar(name, value, step)

    def log_grid(self, step: int, path: Path, image: Image.Image, metadata: Mapping[str, Any]) -> None:
        """Saves a sample grid and logs it."""
        if not self._active:
            return
        write_png(path, image, metadata)
        with with_filename(self._events_folder):
            self._events.image("samples", np.asarray(image), step)

    def flush(self) -> None:
        """Puts everything on disk."""
        if self._active:
            self._write_pending()
            for part in (self._metrics, self._validations):
                part.flush()
            with with_filename(self._events_folder):
                self._events.flush()
            self._push()

    def close(self) -> None:
        """Flushes and closes."""
        if self._active:
            self._write_pending()
            for part in (self._metrics, self._validations):
                part.close()
            with with_filename(self._events_folder):
                self._events.close()
            with self._staging:
                self._push()

    def _push(self) -> None:
        """Copies what was written to where it belongs, if that is another place."""
        if not is_local(self._remote):
            upload(self._local, self._remote)


class LogLine(NamedTuple):
    """One line of a log: its bytes, without the line's end, and what they say."""

    raw: bytes
    values: dict[str, Any]

    @property
    def step(self) -> int:
        """The step that it is about."""
        return self.values["step"]


class LogLines(NamedTuple):
    """The lines of a log, and those that are none: other text, other JSON, no step, or cut short by a kill."""

    entries: list[LogLine]
    unreadable: list[bytes]


def read_log(path: Path) -> LogLines:
    """Reads a file of JSON lines; one that is missing has none.

    Raises:
        UserError: it is no regular file, or cannot be opened.
    """
    lines = LogLines([], [])
    for raw in read_bytes(path).split(b"\n") if path.exists() else []:
        try:
            entry = LogLine(raw, parse_json_object(raw.decode("utf-8-sig"), str(path)))
        except (UserError, UnicodeDecodeError):
            if raw.strip():
                lines.unreadable.append(raw)
            continue
        if type(entry.values.get("step")) is int and 0 <= entry.step < 2**63:
            lines.entries.append(entry)
        else:
            lines.unreadable.append(raw)
    return lines


def append_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Appends lines to a file, and waits until they are on disk."""
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        with with_filename(path), path.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns what the lines of a metrics file say; those that cannot be read are left out."""
    return [line.values for line in read_log(path).entries]
