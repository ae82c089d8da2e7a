"""Reads logs of metrics as they grow: what was appended, and all again where a run has rewritten them."""

import json
import os
import stat
import threading
from array import array
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.report.curves import Curve

MAX_LOGS = 16  # that are remembered
MARK = 64  # bytes before the end of what was read; where they have changed, the file is another one
LARGEST = 2.0**63  # beyond are no steps, and no values that a chart shows
MAX_NAME = 80  # characters of a metric's name
MAX_METRICS = 200  # of a log
CHUNK = 2**22  # bytes in memory at once; no line is as long


class MetricLog:
    """One log of JSON lines.

    Args:
        path: of a regular file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._forget(0)

    def _forget(self, file: int) -> None:
        """Begins anew with a file that has another inode, or other content."""
        self._file, self._offset, self._mark = file, 0, b""
        self._points: dict[str, tuple[array[int], array[float]]] = {}

    def read(self) -> dict[str, Curve]:
        """Returns metric -> curve of all lines that are complete and can be read; none where there is no file."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._forget(0)
            return {}
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return {}
            if status.st_ino != self._file or not self._goes_on(file):
                self._forget(status.st_ino)
            self._read_appended(file)
        return {name: to_curve(steps, values) for name, (steps, values) in self._points.items()}

    def _read_appended(self, file: Any) -> None:
        """Adds the lines that are complete and were not read yet; bytes without a line end are passed over."""
        file.seek(self._offset)
        while len(content := file.read(CHUNK)):
            appended, end, _ = content.rpartition(b"\n")
            if not end and len(content) < CHUNK:
                return
            read = appended + end if end else content
            self._offset += len(read)
            self._mark = (self._mark + read)[-MARK:]
            for line in appended.split(b"\n"):
                self._add(line)
            file.seek(self._offset)

    def _goes_on(self, file: Any) -> bool:
        """Whether a file still has what was read of it."""
        file.seek(max(0, self._offset - MARK))
        return file.read(len(self._mark)) == self._mark

    def _add(self, line: bytes) -> None:
        """Adds the numbers of a line."""
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            step = values.pop("step", None) if isinstance(values, dict) else None
            if type(step) is not int or not 0 <= step < LARGEST:
                return
            for name, value in values.items():
                if is_number(value) and (name in self._points or self._may_add(name)):
                    steps, column = self._points.setdefault(name, (array("q"), array("d")))
                    steps.append(step)
                    column.append(value)

    def _may_add(self, name: str) -> bool:
        """Whether a metric that was not seen yet is shown."""
        return len(name) <= MAX_NAME and len(self._points) < MAX_METRICS


def is_number(value: Any) -> bool:
    """Whether a value of a log can be drawn."""
    return type(value) in (int, float) and abs(value) < LARGEST  # which is false of what is not finite, too


def to_curve(steps: array, values: array) -> Curve:
    """Returns a curve of points in the order of the file; of a step that is there twice, the last one."""
    all_steps, all_values = np.array(steps, np.int64), np.array(values, np.float64)
    if (np.diff(all_steps) > 0).all():
        return Curve(all_steps, all_values)
    distinct, from_the_end = np.unique(all_steps[::-1], return_index=True)
    return Curve(distinct, all_values[::-1][from_the_end])


class MetricLogs:
    """The logs that open pages show; those that nobody has asked for in a while are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: OrderedDict[Path, tuple[MetricLog, threading.Lock]] = OrderedDict()

    def read(self, path: Path) -> dict[str, Curve]:
        """Returns metric -> curve of a log."""
        with self._lock:
            log, lock = self._logs.pop(path, None) or (MetricLog(path), threading.Lock())
            self._logs[path] = log, lock
            if len(self._logs) > MAX_LOGS:
                self._logs.popitem(last=False)
        with lock:
            return log.read()
