"""The runs of a root and the state of each, read from their folders and remembered until a file changes."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.report.settings import describe_trained
from jaxbooth.runs.early_stopping import read_selection
from jaxbooth.runs.folder import CONFIG, RunFolder
from jaxbooth.storage.lock import LOCK, is_held
from jaxbooth.ui.file_cache import version_of
from jaxbooth.ui.job import JOBS, TRAIN, JobFiles
from jaxbooth.ui.metric_logs import is_number
from jaxbooth.ui.sample_tiles import grid_steps
from jaxbooth.ui.tail import read_tail

RunState = Literal["new", "queued", "running", "elsewhere", "done", "stopped", "failed", "killed", "damaged"]
TAIL = 2**13  # bytes at the end of a log of metrics that are read
# What tells that a run has changed; a folder changes when a file in it is created, renamed or removed.
WATCHED = (CONFIG, "metrics.jsonl", "selection.json", "samples", "export", "checkpoints", "evaluation", JOBS)


class Progress(NamedTuple):
    """What a run folder says of a run, whoever trains in it.

    Attributes:
        problem: why the folder cannot be read, in a sentence.
        step: the last one that is logged.
        sample: the newest sample grid's step; its version tells a browser whether it has the grid already.
    """

    config: Config | None = None
    problem: str = ""
    step: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    is_complete: bool = False
    sample: int | None = None
    sample_version: int = 0


class RunSummary(NamedTuple):
    """A run in the list.

    Attributes:
        position: its place in the queue.
        message: why it failed, in a sentence.
        updated: when it last changed, in seconds since 1970.
    """

    name: str
    folder: RunFolder
    state: RunState
    progress: Progress
    position: float | None
    message: str
    updated: float

    @property
    def steps(self) -> int:
        """How many steps the run is to have."""
        return self.progress.config.train.steps if self.progress.config else 0

    @property
    def trained(self) -> str:
        """What of the model is trained, in words."""
        return describe_trained(self.progress.config) if self.progress.config else ""

    @property
    def seconds_left(self) -> float | None:
        """How long the remaining steps take at the speed of the last ones."""
        config, rate = self.progress.config, self.progress.images_per_second
        if config is None or not rate or self.state not in ("running", "elsewhere"):
            return None
        return max(0, self.steps - self.progress.step) * config.rows / rate

    @property
    def is_active(self) -> bool:
        """Whether the run waits or trains, so that it cannot be changed."""
        return self.state in ("queued", "running", "elsewhere")


def run_folders(root: Path) -> Iterator[Path]:
    """Yields the run folders that lie directly in a root."""
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            is_folder = is_shown(entry.name) and entry.is_dir(follow_symlinks=False)
            if is_folder and os.path.isfile(os.path.join(entry.path, CONFIG)):
                yield Path(entry.path)


def is_shown(name: str) -> bool:
    """Whether a folder of a name is looked at: it is not hidden, and no address can hold a name that is not UTF-8."""
    return not name.startswith(".") and name.encode(errors="replace") == name.encode(errors="surrogateescape")


class RunList:
    """Reads runs, each again only when one of its files has changed.

    Args:
        root: holds the run folders.
    """

    def __init__(self, root: Path):
        self._root, self._lock = root, threading.Lock()
        self._read: dict[Path, tuple[tuple[int, ...], Progress]] = {}

    def all(self) -> list[RunSummary]:
        """Returns all runs: those that train, those that wait in their order, then the others, the newest first."""
        runs = [self.get(folder) for folder in run_folders(self._root)]
        return sorted(runs, key=order)

    def get(self, folder: Path) -> RunSummary:
        """Returns one run."""
        versions = file_versions(folder)
        with self._lock:
            known = self._read.get(folder)
        if known is None or known[0] != versions:
            known = versions, read_progress(RunFolder(folder))
            with self._lock:
                self._read[folder] = known
        progress = known[1]
        files = JobFiles.of(folder, TRAIN)
        state = run_state(folder, progress, files)
        job = files.read() if state == "queued" else None
        message = progress.problem or (files.error() or "" if state == "failed" else "")
        updated = max(versions, default=0) / 1e9
        return RunSummary(
            folder.name, RunFolder(folder), state, progress, job.position if job else None, message, updated
        )


def order(run: RunSummary) -> tuple[int, float]:
    """Returns what runs are sorted by."""
    if run.state in ("running", "elsewhere"):
        return 0, -run.updated
    return (1, run.position or 0) if run.state == "queued" else (2, -run.updated)


def file_versions(folder: Path) -> tuple[int, ...]:
    """Returns the modification times of what is watched, in nanoseconds; 0 for what is not there."""
    versions = []
    for name in WATCHED:
        try:
            versions.append(os.stat(os.path.join(folder, name)).st_mtime_ns)
        except OSError:
            versions.append(0)
    return tuple(versions)


def run_state(folder: Path, progress: Progress, files: JobFiles) -> RunState:
    """Returns the state of a run.

    A command that was told to stop has ended well, too; whether the run is complete tells the two apart.
    """
    job = files.state()
    if job in ("running", "queued"):
        return job
    if is_held(folder / LOCK):
        return "elsewhere"
    if progress.config is None:
        return "damaged"
    if progress.is_complete:
        return "done"
    if job in ("failed", "killed"):
        return job
    return "stopped" if job or progress.step else "new"


def read_progress(run: RunFolder) -> Progress:
    """Reads what a run folder says."""
    try:
        config, selection = load_config(run.config), read_selection(run.selection)
    except (UserError, OSError) as error:
        return Progress(problem=str(error))
    last = last_line(run.metrics)
    step = last.get("step", 0)
    has_ended = step >= config.train.steps or selection.stopped_at is not None
    grids = grid_steps(run.samples(0).parent)
    return Progress(
        config=config,
        step=step,
        loss=number_of(last, "loss"),
        images_per_second=number_of(last, "images_per_second"),
        is_complete=has_ended and (run.is_exported or not config.export),
        sample=grids[-1] if grids else None,
        sample_version=version_of(run.samples(grids[-1])) if grids else 0,
    )


def last_line(path: Path) -> dict[str, Any]:
    """Returns the last complete line of a log of metrics; empty if there is none."""
    for line in reversed(read_tail(path, TAIL).split(b"\n")):
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and type(values.get("step")) is int and 0 <= values["step"] < 2**63:
                return values
    return {}


def number_of(line: dict[str, Any], name: str) -> float | None:
    """Returns a value of a line of metrics; None where it is missing or no finite number."""
    value = line.get(name)
    return value if is_number(value) else None
