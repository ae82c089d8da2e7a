"""Whatever becomes of a model's configuration files: a command works or says in one sentence what is wrong."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxbooth.base.model import BaseModel, check_resolution
from jaxbooth.diffusion.samplers import make_timestep_grid
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.weights.diffusers_read import find_tensors
from jaxbooth.weights.resolve import resolve_model
from tests.mutations import MUTATIONS, Mutation, mutated_model

MAX_MESSAGE = 500  # characters on stderr
MAX_RESIDENT = 5 * 2**20  # KiB that a command may ever hold
SAMPLE = ("sample", "MODEL", "--prompt", "a cat", "--num", "1", "--steps", "2", "--resolution", "32", "--out", "OUT")
TRAIN = (
    "train", "demo", "--model", "MODEL", "--run-dir", "OUT", "--train.steps", "1", "--train.prior-weight", "0",
    "--data.resolution", "32",
    "--validation.images-per-prompt", "1", "--validation.steps", "1", "--validation.every", "1",
)  # fmt: skip
QUIET = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def read_all(folder: Path) -> None:
    """Reads a model as `sample` and `train` do, up to the first weight."""
    base = BaseModel.read(resolve_model(str(folder)), "float32")
    for component in base.components:
        find_tensors(base.folder / component, base.module(component))
    check_resolution(base, 64, "--resolution")
    make_timestep_grid(base.schedule, "dpmpp_2m", 25)
    base.text.tokenize(["a photo of a cat", ""])
    base.text.truncated_text("a photo of a cat")


@settings(QUIET, max_examples=40)
@given(st.lists(MUTATIONS, min_size=1, max_size=2))
def test_any_mutation_is_read_or_refused_in_one_sentence(mutations: list[Mutation]):
    with tempfile.TemporaryDirectory() as scratch:
        folder = mutated_model(Path(scratch) / "model", mutations)
        try:
            read_all(folder)
        except (UserError, RunFailure) as error:
            message = str(error)
            assert len(message) <= MAX_MESSAGE, message
            assert "\n" not in message
            assert any(part in message for part in (str(folder), "config.json", "--")), message


def run_command(command: tuple[str, ...], model: Path, scratch: Path) -> tuple[int, str, int]:
    """Runs a command on a model; returns its exit status, what it wrote to stderr, and its peak in KiB."""
    paths = {"MODEL": str(model), "OUT": str(scratch / "out")}
    argv = [sys.executable, "-m", "jaxbooth", *(paths.get(argument, argument) for argument in command)]
    with (scratch / "stderr").open("w+") as stderr:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=stderr, env=os.environ | {"COLUMNS": "80"})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        return process.returncode, stderr.read(), usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("command", [SAMPLE, TRAIN], ids=["sample", "train"])
def test_a_command_on_any_mutation_ends_in_one_sentence_and_little_memory(command):
    @settings(QUIET, max_examples=15)
    @given(MUTATIONS)
    def check(mutation: Mutation) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            model = mutated_model(Path(scratch) / "model", [mutation])
            status, stderr, peak = run_command(command, model, Path(scratch))
        assert status in (0, 1, 2), stderr
        assert len(stderr) <= MAX_MESSAGE, stderr
        assert "Traceback" not in stderr
        assert peak <= MAX_RESIDENT

    check()
