"""Metrics and pictures on disk: `metrics.jsonl`, TensorBoard, sample grids. Process 0 only."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.console import is_main
from jaxbooth.disk import named
from jaxbooth.files import write_png, write_text
from jaxbooth.remote import is_local, local_twin, upload
from jaxbooth.training.board import Board

VALIDATION = "validation.jsonl"


class Log:
    """A file of JSON lines that grows. Lines of steps after `step` are dropped: they will be done again."""

    def __init__(self, path: Path, step: int):
        keep = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in keep))
        self._path, self._file = path, path.open("a")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        with named(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Puts everything on disk."""
        with named(self._path):
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with named(self._path):
            self._file.close()


class Writer:
    """Appends to a run folder's logs: metrics of every step, and figures of every validation beside them."""

    def __init__(self, metrics: Path, tensorboard: Path, step: int):
        self._active = is_main()
        if not self._active:
            return
        self._remote, self._twin = metrics.parent, ExitStack()
        if not is_local(metrics):  # nothing can be appended there
            self._here = self._twin.enter_context(local_twin(metrics.parent))
            for name in (metrics.name, VALIDATION):
                if (metrics.parent / name).exists():
                    write_text(self._here / name, (metrics.parent / name).read_text())
            metrics, tensorboard = self._here / metrics.name, self._here / tensorboard.name
        self._metrics, self._figures = Log(metrics, step), Log(metrics.parent / VALIDATION, step)
        self._board, self._events = Board(tensorboard, step), tensorboard

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        if self._active:
            self._add(self._metrics, step, values)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the figures of one validation."""
        if self._active:
            self._add(self._figures, step, values)

    def _add(self, log: Log, step: int, values: Mapping[str, float]) -> None:
        log.add(step, values)
        with named(self._events):
            for name, value in values.items():
                self._board.scalar(name, value, step)

    def grid(self, step: int, path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
        """Saves a sample grid and logs it."""
        if not self._active:
            return
        write_png(path, image, facts)
        with named(self._events):
            self._board.image("samples", np.asarray(image), step)

    def flush(self) -> None:
        """Puts everything on disk."""
        if self._active:
            for part in (self._metrics, self._figures):
                part.flush()
            with named(self._events):
                self._board.flush()
            self._push()

    def close(self) -> None:
        """Flushes and closes."""
        if self._active:
            for part in (self._metrics, self._figures):
                part.close()
            with named(self._events):
                self._board.close()
            with self._twin:
                self._push()

    def _push(self) -> None:
        """Copies what was written to where it belongs, if that is another place."""
        if not is_local(self._remote):
            upload(self._here, self._remote)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file; a last line cut short by a killed process is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
