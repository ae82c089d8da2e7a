"""scripts/launch/local.sh: N processes on this machine, seen from outside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[1] / "scripts" / "launch" / "local.sh"

SHOW = """
import os, sys
print("|".join([*sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ.get("JAX_PLATFORMS", "-")]))
"""
FAIL_IN_1 = """
import sys, time
if sys.argv[-1] == "1":
    sys.exit(7)
time.sleep(600)
"""
IGNORE_TERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(1)
if sys.argv[-1] == "0":
    sys.exit(5)
time.sleep(600)
"""
SAVE_ON_SIGNAL = """
import signal, sys, time
def leave(number, frame):
    print("saved on", signal.Signals(number).name, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
print("up", flush=True)
time.sleep(600)
"""
LEAVE_A_CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("the process ends, its child would not", flush=True)
"""
SUM_OVER_PROCESSES = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
jax.distributed.initialize(
    given["--distributed.coordinator"],
    int(given["--distributed.num-processes"]), int(given["--distributed.process-id"]),
    initialization_timeout=200,
)
total = multihost_utils.process_allgather(np.array([jax.process_index() + 1])).sum()
print(jax.process_count(), jax.device_count(), jax.local_device_count(), total)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """Returns a command that runs Python source and that `--distributed` flags can be put behind."""

    def command(source: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(source)
        return [sys.executable, str(path)]

    return command


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what decides about devices, and with `changes`."""
    own = {"XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "DEVICES_PER_PROCESS"}
    return {name: value for name, value in os.environ.items() if name not in own} | changes


def launch(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs the launcher to its end."""
    return subprocess.run(
        [str(LAUNCHER), *arguments], env=environment(**changes), capture_output=True, text=True, timeout=300
    )


def test_each_process_is_told_its_number_and_the_same_address(program):
    done = launch("3", *program(SHOW), "train", "two words", CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split(" ")[0] for line in lines] == ["[0]", "[1]", "[2]"]
    for number, line in enumerate(lines):
        words = line.split(" ", 1)[1].split("|")
        assert words[:2] == ["train", "two words"]
        assert words[2] == "--distributed.coordinator"
        assert words[4:8] == ["--distributed.num-processes", "3", "--distributed.process-id", str(number)]
    addresses = {line.split("|")[3] for line in lines}
    assert len(addresses) == 1
    assert addresses.pop().startswith("127.0.0.1:")


def test_a_double_dash_may_part_the_number_from_the_command(program):
    assert "[0] --distributed.coordinator" in launch("1", "--", *program(SHOW), PORT="4321").stdout


def test_a_given_port_is_used(program):
    assert "127.0.0.1:4321" in launch("1", *program(SHOW), PORT="4321").stdout


def test_gpus_are_shared_out_evenly(program):
    lines = sorted(launch("2", *program(SHOW), CUDA_VISIBLE_DEVICES="4,5,6,7").stdout.splitlines())
    assert [line.split("|")[-2] for line in lines] == ["4,5", "6,7"]


def test_devices_per_process_choose_the_cpu(program):
    lines = launch("2", *program(SHOW), DEVICES_PER_PROCESS="2", CUDA_VISIBLE_DEVICES="4,5,6").stdout.splitlines()
    assert [line.split("|")[-1] for line in lines] == ["cpu", "cpu"]


def test_processes_find_each_other_through_the_flags(program):
    done = launch("2", *program(SUM_OVER_PROCESSES), DEVICES_PER_PROCESS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line for line in sorted(done.stdout.splitlines()) if line.endswith("2 4 2 3")]
    assert results == ["[0] 2 4 2 3", "[1] 2 4 2 3"]


def test_one_failure_ends_all_and_its_exit_code_is_returned(program):
    start = time.monotonic()
    done = launch("3", *program(FAIL_IN_1))
    assert done.returncode == 7
    assert done.stderr == "local.sh: process 1 ended with exit code 7; the others are ended.\n"
    assert time.monotonic() - start < 20


def test_what_does_not_heed_sigterm_after_a_failure_is_killed(program):
    start = time.monotonic()
    assert launch("2", *program(IGNORE_TERM), GRACE_SECONDS="1").returncode == 5
    assert time.monotonic() - start < 20


@pytest.fixture
def hears_signals():
    """What is started from here hears SIGINT and SIGHUP, also where the tests run in the background and do not."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize(
    ("number", "passed_on"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM")],
)
def test_signals_reach_every_process_once(program, number, passed_on):
    with subprocess.Popen(
        [str(LAUNCHER), "2", *program(SAVE_ON_SIGNAL)], env=environment(), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert sorted(running.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
        running.send_signal(number)
        left = sorted(running.stdout.read().splitlines())
    assert left == [f"[{i}] saved on {passed_on}" for i in range(2)]
    assert running.returncode == 0


def test_children_of_a_process_do_not_hold_the_launcher_up(program):
    start = time.monotonic()
    assert launch("2", *program(LEAVE_A_CHILD)).returncode == 0
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {}, "the first argument is the number of processes"),
        (["0", "true"], {}, "the first argument is the number of processes"),
        (["jaxbooth", "train"], {}, "the first argument is the number of processes"),
        (["2"], {}, "a command must follow the number of processes"),
        (
            ["2", "true"],
            {"DEVICES_PER_PROCESS": "some"},
            "DEVICES_PER_PROCESS is 'some'; it must be a positive number.",
        ),
        (["2", "true"], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 GPUs cannot be shared out to 2 processes evenly"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, changes, message):
    done = launch(*arguments, **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
