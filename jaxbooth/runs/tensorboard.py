"""TensorBoard's event files, written where they are asked for, so that a full disk is an error of the training.

tensorboardX's own `SummaryWriter` writes from a thread that dies then, after which flushing never returns.
"""

import time
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # ty: ignore[missing-module-member] (made at run time)
from tensorboardX.summary import image, scalar


class EventWriter:
    """A new event file in a folder; what other files there say of later steps than `step` is hidden."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self._add(step, scalar(name, value))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Adds an image, (H, W, 3) uint8."""
        self._add(step, image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Puts everything on disk."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._events.close()

    def _add(self, step: int, summary: object) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
