"""A job: one command that the page starts for a run, described by files in the run folder alone.

`RUN/jobs/NAME.json` says what to do, `NAME.log` is what it printed, `NAME.exit` its exit code, and `NAME.lock` is
locked for as long as its process lives. The server can be killed at any time: whoever reads these files knows how far
each job is.

A job that was not queued by a server of this root does not count: a run folder that came from elsewhere, or that was
copied or renamed while it waited, starts nothing by itself.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.lock import is_held
from jaxbooth.storage.text import read_json
from jaxbooth.ui.file_cache import version_of
from jaxbooth.ui.roots import SERVER
from jaxbooth.ui.tail import read_tail
from jaxbooth.ui.tokens import seal

JOBS = "jobs"  # in a run folder
TRAIN = "train"  # the name of the job that trains
ERROR = "error: "  # begins the last line of a command that failed
TAIL = 2**16  # bytes at the end of a log that are read
MAX_KNOWN = 10_000  # jobs that are remembered
SHORT = 32  # bytes of a file that holds a number
LINK_ERROR = "{} is a link, through which jobs would be written elsewhere; replace it by the folder."
SAME_STOP = 10  # seconds in which a second request to stop is the same one; training would end without saving
STOPPED = (130, 143, -signal.SIGTERM, -signal.SIGINT)

# Held while the files of jobs are read and then changed; there is one server for a root.
changing = threading.RLock()

JobState = Literal["queued", "running", "done", "stopped", "failed", "killed"]


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        argv: of `jaxbooth`.
        position: its place in the queue; smaller numbers first.
        needs_device: whether it waits for a set of devices; else it runs on the CPU.
        devices: the set that it was given when it started.
        started: when it was, in seconds since 1970.
        seal: of whoever has queued it.
        stop_asked: when it was last asked to stop.
    """

    name: str
    argv: tuple[str, ...]
    position: Annotated[float, Field(allow_inf_nan=False)]
    needs_device: bool = True
    devices: str | None = None
    started: Annotated[float, Field(allow_inf_nan=False)] | None = None
    seal: str = ""
    stop_asked: Annotated[float, Field(allow_inf_nan=False)] | None = None


ADAPTER = TypeAdapter(Job)


@dataclass(frozen=True)
class JobFiles:
    """The files of one job."""

    folder: Path
    name: str

    @classmethod
    def of(cls, run: Path, name: str) -> Self:
        """Returns the files of a run's job."""
        return cls(run / JOBS, name)

    @property
    def job(self) -> Path:
        """What to do."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What was printed, by all starts of the job."""
        return self.folder / f"{self.name}.log"

    @property
    def exit(self) -> Path:
        """The exit code."""
        return self.folder / f"{self.name}.exit"

    @property
    def lock(self) -> Path:
        """Locked by the job's process, whose number it holds."""
        return self.folder / f"{self.name}.lock"

    def read(self) -> Job | None:
        """Returns the job; None where there is none, or its file is damaged."""
        return None if self.folder.is_symlink() else read_job(self.job, version_of(self.job))

    def enqueue(self, argv: Sequence[str], needs_device: bool = True) -> Job:
        """Puts a command at the end of the queue.

        Raises:
            UserError: it waits or runs already, or its run is gone.
        """
        run = self.folder.parent
        with changing:
            state = self.state()
            if state in ("queued", "running"):
                raise UserError(f"{run.name}: {self.name} is {state} already.")
            if not run.is_dir():
                raise UserError(f"{run.name} is gone; it was deleted or renamed.")
            position = max(time.time(), last_position(run.parent) + 1)  # the clock may have been set back
            job = Job(self.name, tuple(argv), position, needs_device, seal=self.seal(argv))
            self.write(job)
        return job

    def seal(self, argv: Sequence[str]) -> str:
        """Returns the seal of a command of this job."""
        return seal(self.folder.parents[1] / SERVER, [str(self.folder), self.name, *argv])

    def write(self, job: Job) -> None:
        """Writes the job.

        Raises:
            UserError: its folder is a link.
        """
        if self.folder.is_symlink():
            raise UserError(LINK_ERROR.format(self.folder))
        write_json(self.job, asdict(job))

    def start(self, devices: str | None) -> Job:
        """Marks the job as started, before its process is."""
        job = self.read()
        if job is None:
            raise UserError(f"{self.job} is gone; queue the job again.")
        self.exit.unlink(missing_ok=True)
        started = replace(job, devices=devices, started=time.time())
        self.write(started)
        return started

    def state(self) -> JobState | None:
        """Returns the job's state; None where there is no job."""
        if not self.folder.is_symlink() and is_held(self.lock):
            return "running"
        job = self.read()
        if job is None:
            return None
        if job.started is None:
            return "queued" if job.seal == self.seal(job.argv) else None
        code = self.exit_code()
        if code is None:
            return "killed" if job.stop_asked is None else "stopped"
        return "done" if code == 0 else "stopped" if code in STOPPED else "failed"

    def exit_code(self) -> int | None:
        """Returns the exit code of the last start, once it has ended by itself."""
        with suppress(ValueError):
            return int(read_tail(self.exit, SHORT))
        return None

    def stop(self) -> None:
        """Takes a waiting job out of the queue; asks a running one to end, which saves first."""
        with changing:
            state, job, process = self.state(), self.read(), self.process()
            if state == "queued":
                self.job.unlink(missing_ok=True)
            if state != "running" or process is None:
                return
            if job:
                if job.stop_asked is not None and abs(time.time() - job.stop_asked) < SAME_STOP:
                    return
                self.write(replace(job, stop_asked=time.time()))
            with suppress(OSError):
                os.kill(process, signal.SIGTERM)

    def process(self) -> int | None:
        """Returns the number of the process that has locked the job, or had; None if it has not said so yet."""
        with suppress(ValueError):
            process = int(read_tail(self.lock, SHORT))
            return process if 1 < process < 2**31 else None  # 0 and negative numbers are groups of processes
        return None

    def log_lines(self) -> list[str]:
        """Returns the last lines of the log."""
        return read_tail(self.log, TAIL).decode("utf-8", "replace").splitlines()

    def error(self) -> str | None:
        """Returns the message with which the last start failed."""
        return next((line[len(ERROR) :] for line in reversed(self.log_lines()) if line.startswith(ERROR)), None)


@lru_cache(MAX_KNOWN)
def read_job(path: Path, _version: int) -> Job | None:
    """Reads a job's file, once for each version of it: the queue looks at those of all runs, again and again."""
    with suppress(UserError, ValidationError):
        return ADAPTER.validate_python(read_json(path))
    return None


def job_names(run: Path) -> list[str]:
    """Returns the names of a run's jobs."""
    with suppress(OSError):
        if (run / JOBS).is_symlink():
            return []
        return sorted(path.name.removesuffix(".json") for path in (run / JOBS).iterdir() if path.suffix == ".json")
    return []


def last_position(root: Path) -> float:
    """Returns the last position in the queue; 0 if nothing waits."""
    jobs = [JobFiles(path.parent, path.stem).read() for path in root.glob(f"*/{JOBS}/*.json")]
    return max((job.position for job in jobs if job and job.started is None), default=0.0)
