"""A job: one command that the page starts for a run, described by files in the run folder alone.

`RUN/jobs/NAME.json` says what to do, `NAME.log` is what it printed, `NAME.exit` its exit code, and `NAME.lock` is
locked for as long as its process lives. The server can be killed at any time: whoever reads these files knows how far
each job is.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.lock import is_held
from jaxbooth.storage.text import read_json
from jaxbooth.ui.tail import read_tail

JOBS = "jobs"  # in a run folder
TRAIN = "train"  # the name of the job that trains
ERROR = "error: "  # begins the last line of a command that failed
TAIL = 2**16  # bytes at the end of a log that are read
STOPPED = (130, 143, -signal.SIGTERM, -signal.SIGINT)

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
    """

    name: str
    argv: tuple[str, ...]
    position: float
    needs_device: bool = True
    devices: str | None = None
    started: Annotated[float, Field(allow_inf_nan=False)] | None = None


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
        with suppress(UserError, ValidationError):
            return ADAPTER.validate_python(read_json(self.job))
        return None

    def enqueue(self, argv: Sequence[str], needs_device: bool = True) -> Job:
        """Puts a command at the end of the queue.

        Raises:
            UserError: it waits or runs already.
        """
        state = self.state()
        if state in ("queued", "running"):
            raise UserError(f"{self.folder.parent.name}: {self.name} is {state} already.")
        job = Job(self.name, tuple(argv), time.time(), needs_device)
        self.exit.unlink(missing_ok=True)
        self.write(job)
        return job

    def write(self, job: Job) -> None:
        """Writes the job."""
        write_json(self.job, asdict(job))

    def start(self, devices: str | None) -> Job:
        """Marks the job as started, before its process is."""
        job = self.read()
        if job is None:
            raise UserError(f"{self.job} is gone; queue the job again.")
        started = replace(job, devices=devices, started=time.time())
        self.write(started)
        return started

    def state(self) -> JobState | None:
        """Returns the job's state; None where there is no job."""
        if is_held(self.lock):
            return "running"
        job = self.read()
        if job is None:
            return None
        if job.started is None:
            return "queued"
        code = self.exit_code()
        if code is None:
            return "killed"
        return "done" if code == 0 else "stopped" if code in STOPPED else "failed"

    def exit_code(self) -> int | None:
        """Returns the exit code of the last start, once it has ended by itself."""
        with suppress(OSError, ValueError):
            return int(self.exit.read_text(encoding="ascii"))
        return None

    def stop(self) -> None:
        """Takes a waiting job out of the queue; asks a running one to end, which saves first."""
        if self.state() == "queued":
            self.job.unlink(missing_ok=True)
        elif is_held(self.lock):
            with suppress(OSError, ValueError):
                os.kill(int(self.lock.read_text(encoding="ascii")), signal.SIGTERM)

    def log_lines(self) -> list[str]:
        """Returns the last lines of the log."""
        return read_tail(self.log, TAIL).decode("utf-8", "replace").splitlines()

    def error(self) -> str | None:
        """Returns the message with which the last start failed."""
        return next((line[len(ERROR) :] for line in reversed(self.log_lines()) if line.startswith(ERROR)), None)


def job_names(run: Path) -> list[str]:
    """Returns the names of a run's jobs."""
    with suppress(OSError):
        return sorted(path.name.removesuffix(".json") for path in (run / JOBS).iterdir() if path.suffix == ".json")
    return []
