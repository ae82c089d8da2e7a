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


class Writer:
    """Appends to a run folder's logs. Lines of steps after `step` are dropped: they will be done again."""

    def __init__(self, metrics: Path, tensorboard: Path, step: int):
        self._active = is_main()
        if not self._active:
            return
        keep = [line for line in read_metrics(metrics) if line["step"] <= step]
        self._remote, self._twin = metrics.parent, ExitStack()
        if not is_local(metrics):  # nothing can be appended there
            folder = self._twin.enter_context(local_twin(metrics.parent))
            metrics, tensorboard = folder / metrics.name, folder / tensorboard.name
        write_text(metrics, "".join(json.dumps(line) + "\n" for line in keep))
        self._path, self._file = metrics, metrics.open("a")
        self._board = Board(tensorboard, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        if not self._active:
            return
        with named(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self._board.scalar(name, value, step)

    def grid(self, step: int, path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
        """Saves a sample grid and logs it."""
        if not self._active:
            return
        write_png(path, image, facts)
        with named(path):
            self._board.image("samples", np.asarray(image), step)

    def flush(self) -> None:
        """Puts everything on disk."""
        if self._active:
            with named(self._path):
                self._file.flush()
                self._board.flush()
            self._push()

    def close(self) -> None:
        """Flushes and closes."""
        if self._active:
            with named(self._path):
                self._file.close()
                self._board.close()
            with self._twin:
                self._push()

    def _push(self) -> None:
        """Copies what was written to where it belongs, if that is another place."""
        if not is_local(self._remote):
            upload(self._path.parent, self._remote)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file; a last line cut short by a killed process is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
