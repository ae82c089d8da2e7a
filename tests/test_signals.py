"""SIGTERM, Ctrl-C and the end of the terminal: the work is saved, and the process leaves."""

import signal
import subprocess
import sys
import time

import pytest

WORK = """
import signal, sys, time
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.distributed.signals import exit_before_start, handled, stop_signals, watch_signals
with handled(exit_before_start, *stop_signals()):
    if "loop" in sys.argv:
        alone = SingleProcess(lambda: None)
        with watch_signals(alone.request_stop, alone.may_interrupt):
            alone.stop_agreement.begin(0)
            print("up", flush=True)
            for step in range(200):
                if not alone.stop_agreement.may_run_to(step):
                    time.sleep(0.5)  # saving
                    sys.exit("saved")
                time.sleep(0.05)
    else:
        print("up", flush=True)
        time.sleep(10)
print("to its end", flush=True)
"""


def signalled(command: list[str], numbers: list[signal.Signals]) -> tuple[int, str]:
    """Sends signals to a program that has come up; returns its exit code and the rest of what it prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        while process.stdout.readline() not in ("up\n", ""):
            pass
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        return process.wait(60), process.stdout.read()


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGHUP, signal.SIGHUP]])
def test_a_signal_or_the_end_of_the_terminal_saves_and_leaves(numbers):
    assert signalled([sys.executable, "-c", WORK, "loop"], numbers) == (1, "saved\n")


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_before_there_is_anything_to_save_a_signal_leaves(numbers):
    assert signalled([sys.executable, "-c", WORK], numbers) == (0, "stopped; run the same command again.\n")


def test_what_nohup_started_goes_on_when_the_terminal_ends():
    command = ["nohup", sys.executable, "-c", WORK, "loop"]
    assert signalled(command, [signal.SIGHUP]) == (0, "to its end\n")
