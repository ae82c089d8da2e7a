"""The process of a job: runs a command of jaxbooth and leaves its exit code.

Started as `python -m jaxbooth.ui.job_process RUN/jobs/NAME.json`, with the locked file of the job open: the kernel
frees it when the process ends, in whatever way. It is no child that the server has to outlive.
"""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

from filelock import lock_descriptor

from jaxbooth.storage.files import write_text
from jaxbooth.ui.job import JobFiles

ALL_DEVICES = "all"  # the set of a machine whose devices are not divided


def start_process(files: JobFiles, devices: str | None) -> bool:
    """Starts the process of a waiting job on a set of devices, or on the CPU.

    Args:
        devices: numbers of GPUs such as "0,1", `ALL_DEVICES`, or None for the CPU.

    Returns:
        False if another server was faster.
    """
    lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if not lock_descriptor(lock, blocking=False):
            return False
        files.start(devices)
        command = [sys.executable, "-m", "jaxbooth.ui.job_process", str(files.job)]
        os.ftruncate(lock, 0)  # the number in it is another process's by now
        if files.log.is_symlink():
            files.log.unlink()
        with files.log.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=job_environment(devices),
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in the server's terminal is not for its jobs
            )
        os.pwrite(lock, str(process.pid).encode(), 0)
        return True
    finally:
        os.close(lock)


def job_environment(devices: str | None) -> dict[str, str]:
    """Returns the environment of a job, which sees its devices only."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if devices is None:
        return environment | {"JAX_PLATFORMS": "cpu"}
    return environment if devices == ALL_DEVICES else environment | {"CUDA_VISIBLE_DEVICES": devices}


def run_command(argv: list[str]) -> int:
    """Runs a command and returns its exit code."""
    sys.argv = ["jaxbooth", *argv]
    try:
        runpy.run_module("jaxbooth", run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def say_number(files: JobFiles) -> None:
    """Leaves this process's number, which the server also does unless it was killed meanwhile."""
    with files.lock.open("r+b") as lock:
        lock.write(str(os.getpid()).encode())


def main() -> None:
    """Runs the job that the argument names."""
    path = Path(sys.argv[1])
    files = JobFiles(path.parent, path.stem)
    job = files.read()
    if job is None:
        sys.exit(f"{path} is no job.")
    say_number(files)
    code = 1  # of an exception that no command turns into a message
    try:
        code = run_command(list(job.argv))
    finally:
        if files.job.exists():  # else the run was deleted or renamed, and its folder is not to appear again
            write_text(files.exit, str(code))


if __name__ == "__main__":
    main()
