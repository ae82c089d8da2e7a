"""What the page of a run says of its state: what it does now, how long that takes, and the memory that it takes."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import format_duration, format_gib, format_significant
from jaxbooth.errors import UserError
from jaxbooth.report.curves import Curve
from jaxbooth.report.settings import Setting, compare_settings
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.folder import RunFolder
from jaxbooth.storage.lock import LOCK
from jaxbooth.storage.text import read_json
from jaxbooth.ui.job import TRAIN, JobFiles
from jaxbooth.ui.phase import TRAIN as TRAIN_PHASE
from jaxbooth.ui.phase import Phase, last_phase
from jaxbooth.ui.run_list import RunSummary

PEAK_MEMORY = "peak_memory"  # the metric, in GiB


class Activity(NamedTuple):
    """What a run does now.

    Attributes:
        words: for people.
        done, total: of the phase's work, where it is counted and not that of the steps.
        seconds_left: until the phase ends; of the training, until its last step.
    """

    words: str
    done: int | None
    total: int | None
    seconds_left: float | None


def activity(run: RunSummary) -> Activity | None:
    """Returns what a run that trains does now.

    The log says so; steps that are newer than its last line mean that the run trains.
    """
    if run.state not in ("running", "elsewhere"):
        return None
    files = JobFiles.of(run.folder.root, TRAIN)
    phase = last_phase(files.log_lines()) if run.state == "running" else None
    is_training = (phase is None and run.progress.step) or modified(run.folder.metrics) > modified(files.log)
    if is_training or (phase and phase.name == TRAIN_PHASE):
        return training(run, phase)
    if phase is None:
        return Activity("starting" if run.state == "running" else "training", None, None, None)
    return Activity(phase.words, phase.done, phase.total, phase.seconds_left)


def training(run: RunSummary, phase: Phase | None) -> Activity:
    """Returns that a run trains, and for how long it still does."""
    logged = phase.seconds_left if phase and phase.name == TRAIN_PHASE else None
    return Activity("training", None, None, run.seconds_left if run.seconds_left is not None else logged)


def modified(path: Path) -> float:
    """Returns when a file was changed, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def figures(run: RunSummary, curves: Mapping[str, Curve]) -> dict[str, str]:
    """Returns name -> value of what is worth a look beside the curves."""
    progress, shown = run.progress, {}
    if progress.loss is not None:
        shown["loss of the last step"] = f"{progress.loss:.4f}"
    if progress.images_per_second:
        shown["images/s"] = format_significant(progress.images_per_second)
        if progress.config:
            shown["a step"] = format_duration(progress.config.rows / progress.images_per_second)
    if PEAK_MEMORY in curves:
        shown["device memory, peak"] = f"{curves[PEAK_MEMORY].values.max():.2f} GiB"
    resident = resident_bytes(run)
    if resident:
        shown["host memory"] = format_gib(resident)
    return shown


def resident_bytes(run: RunSummary) -> int | None:
    """Returns the memory of the process that trains, if that runs on this machine."""
    process = training_process(run)
    if process is None:
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def training_process(run: RunSummary) -> int | None:
    """Returns the number of the process that trains, if that is on this machine."""
    with suppress(UserError, OSError, ValueError):
        if run.state == "running":
            return JobFiles.of(run.folder.root, TRAIN).process()
        holder = read_json(run.folder.root / LOCK) if run.state == "elsewhere" else {}
        process = holder.get("pid")
        return process if holder.get("host") == platform.node() and type(process) is int else None
    return None


def changed_settings(config: Config) -> list[Setting]:
    """Returns the settings of a run that differ from the defaults."""
    return [setting for setting in compare_settings([config]) if setting.changed[0]]


def saved_steps(run: RunFolder) -> list[int]:
    """Returns the steps of a run's checkpoints, the newest first."""
    with suppress(OSError):
        return [step for step in reversed(checkpoint_steps(run.checkpoints)) if step]
    return []


def next_length(run: RunSummary) -> int:
    """Returns how many steps are offered to a run that could go on: its own number again, in a round number."""
    done = max(run.progress.step, 1)
    if run.progress.step < run.steps:
        return run.steps
    unit = 10 ** max(0, len(str(done)) - 2)
    return -(-3 * done // (2 * unit)) * unit
