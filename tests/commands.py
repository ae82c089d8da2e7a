"""Running jaxbooth as a user does: in a process of its own, on one CPU device."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.xla import QUICK

SHORT = [
    "demo", "--data.num-class-images", "3", "--prior.steps", "2", "--prior.sample-batch-size", "4",
    "--train.batch-size", "2", "--train.steps-per-dispatch", "2", "--train.checkpoint-every", "3",
    "--validation.prompts", "an emoji of a sks cat", "--validation.images-per-prompt", "1", "--validation.steps", "2",
    "--validation.every", "6",
]  # fmt: skip


def environment(flags: str = QUICK) -> dict[str, str]:
    """The test run's environment with a single device, and no way to colour or wrap the output."""
    return os.environ | {"XLA_FLAGS": flags, "NO_COLOR": "1", "COLUMNS": "200"}


def jaxbooth(
    *arguments: object, code: str = "from jaxbooth.cli.main import main; main()", flags: str = QUICK
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; `flags` are XLA's."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(flags), capture_output=True, text=True, timeout=600)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts a command and returns at once."""
    command = [sys.executable, "-m", "jaxbooth", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(run_dir: Path, *extra: object, steps: int = 6, flags: str = QUICK) -> subprocess.CompletedProcess[str]:
    """Runs a short training on the embedded model and subject; `flags` are XLA's."""
    return jaxbooth("train", *SHORT, "--run-dir", run_dir, "--train.steps", steps, *extra, flags=flags)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the output of a command that must have worked."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_facts(path: Path) -> dict[str, str]:
    """Returns the text chunks of a PNG."""
    with Image.open(path) as image:
        return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
