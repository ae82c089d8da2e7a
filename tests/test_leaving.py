"""How a run leaves: on a signal, on a loss that is not finite, on weights that do not move; and small commands."""

import re
import signal
import time

import numpy as np
import pytest

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import SHORT, jaxbooth, start, succeed, train


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_and_the_same_command_continues(micro_model, tmp_path, number):
    run_dir = tmp_path / "run"
    command = [
        "train",
        *SHORT,
        "--model",
        micro_model,
        "--run-dir",
        run_dir,
        "--train.checkpoint-every",
        "100000",
        "--validation.every",
        "100000",
    ]
    process = start(*command, "--train.steps", "100000")
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (saved,) = (int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert f"stopped and saved at step {saved} of 100000" in output
    resumed = succeed(jaxbooth(*command, "--train.steps", saved + 1))
    assert f"resumed at step {saved} of {saved + 1}" in resumed


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(micro_model, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["--train.learning-rate", "1000", "--train.checkpoint-every", "1", "--train.max-grad-norm", "0"]
    done = train(run_dir, "--model", micro_model, *arguments)
    assert done.returncode == 1
    assert "is not finite; the run stopped and its last checkpoint is intact" in done.stderr
    assert "Traceback" not in done.stderr
    for line in read_metrics(run_dir / "metrics.jsonl"):
        assert np.isfinite(line["loss"])


def test_a_local_model_needs_no_network(micro_model, tmp_path):
    blocked = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('network call')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from jaxbooth.cli.main import main; main()"
    )
    flags = ["--prompt", "a cat", "--num", 1, "--steps", 1, "--out", tmp_path]
    succeed(jaxbooth("sample", micro_model, *flags, code=blocked))


def test_doctor_runs_a_convolution_where_jax_runs():
    output = succeed(jaxbooth("doctor"))
    assert re.search(r"convolution +right on", output)
    assert "free disk" in output


@pytest.mark.slow
def test_weights_that_did_not_move_are_an_error(micro_model, tmp_path):
    done = train(tmp_path / "run", "--model", micro_model, "--train.learning-rate", "1e-60", steps=1)
    assert done.returncode == 1
    assert "the unet did not change in 1 steps" in done.stderr
