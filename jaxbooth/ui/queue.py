"""The queue: starts waiting jobs, one at a time on each set of devices, in their order."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from jaxbooth.console.progress import run_periodically
from jaxbooth.errors import UserError
from jaxbooth.storage.lock import LOCK, is_held
from jaxbooth.ui.job import TRAIN, Job, JobFiles, JobState, changing, job_names
from jaxbooth.ui.job_process import ALL_DEVICES, start_process
from jaxbooth.ui.run_list import run_folders

SECONDS = 1.0  # between two looks at the queue
MAX_CPU_JOBS = 1  # at once


class Entry(NamedTuple):
    """A job of a run that waits or runs."""

    run: Path
    files: JobFiles
    job: Job
    state: JobState


class Queue:
    """Starts jobs.

    Args:
        root: holds the run folders.
        device_sets: numbers of GPUs such as "0,1", which a job has for itself; none: one job has all devices.
    """

    def __init__(self, root: Path, device_sets: Sequence[str] = ()):
        self._root, self._device_sets = root, tuple(device_sets) or (ALL_DEVICES,)

    def running(self) -> AbstractContextManager[None]:
        """Returns a context in which waiting jobs are started."""
        return run_periodically(SECONDS, self.start_waiting)

    def entries(self) -> list[Entry]:
        """Returns what runs and what waits, in order."""
        return sorted(active_jobs(self._root), key=lambda entry: (entry.state == "queued", entry.job.position))

    def start_waiting(self) -> None:
        """Starts what can start now."""
        with changing:
            entries = self.entries()
            free = self.free_devices(entries)
            cpu_jobs = sum(entry.state == "running" and not entry.job.needs_device for entry in entries)
            for entry in (entry for entry in entries if entry.state == "queued"):
                if entry.job.needs_device and free and start(entry, free[0]):
                    free.pop(0)
                elif not entry.job.needs_device and cpu_jobs < MAX_CPU_JOBS:
                    cpu_jobs += start(entry, None)

    def free_devices(self, entries: Sequence[Entry]) -> list[str]:
        """Returns the sets on which nothing runs; none while a process trains that this page has not started."""
        if any(is_trained_elsewhere(run) for run in run_folders(self._root)):
            return []
        taken = {entry.job.devices for entry in entries if entry.state == "running" and entry.job.needs_device}
        unknown = taken - set(self._device_sets)  # of a server that was started with other sets
        return [] if unknown else [devices for devices in self._device_sets if devices not in taken]

    def move(self, run: Path, direction: Literal["up", "down"]) -> None:
        """Changes places with the job that waits before or after a run's training."""
        with changing:
            waiting = [entry for entry in self.entries() if entry.state == "queued" and entry.job.needs_device]
            at = next((index for index, entry in enumerate(waiting) if entry.run == run), None)
            other = None if at is None else at + (-1 if direction == "up" else 1)
            if at is None or other is None or not 0 <= other < len(waiting):
                return
            first, second = waiting[at], waiting[other]
            first.files.write(replace(first.job, position=second.job.position))
            second.files.write(replace(second.job, position=first.job.position))


def active_jobs(root: Path) -> list[Entry]:
    """Returns the jobs of all runs that wait or run."""
    entries = []
    for run in run_folders(root):
        for name in job_names(run):
            files = JobFiles.of(run, name)
            job, state = files.read(), files.state()
            if job and state in ("queued", "running"):
                entries.append(Entry(run, files, job, state))
    return entries


def is_trained_elsewhere(run: Path) -> bool:
    """Whether a process that the page has not started trains in a run folder."""
    return is_held(run / LOCK) and not is_held(JobFiles.of(run, TRAIN).lock)


def start(entry: Entry, devices: str | None) -> bool:
    """Starts a job, if that is possible: its run may be deleted in the same moment, or not be writable."""
    with suppress(UserError, OSError):
        return start_process(entry.files, devices)
    return False
