"""One run by several processes: what it makes is what one process makes, and they end together."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import environment
from tests.processes import SHORT, check_told_of, free_port, outputs, start, start_all, write_micro_model

LAUNCHER = Path(__file__).parents[1] / "scripts" / "launch" / "local.sh"
FLOAT32_STEPS = 2e-5  # six steps of Adam, whose first updates are the signs of sums of another order


@pytest.fixture(scope="module")
def model(micro, micro_params, tmp_path_factory):
    """A model on disk whose step compiles in seconds."""
    return write_micro_model(micro, micro_params["unet"], tmp_path_factory.mktemp("models") / "micro")


def command(model, run_dir, *extra):
    """A short run."""
    return ["train", *SHORT, "--model", model, "--run-dir", run_dir, "--train.steps", 6, *extra]


@pytest.fixture(scope="module")
def single(model, tmp_path_factory):
    """The run of one process on one device."""
    run_dir = tmp_path_factory.mktemp("single") / "run"
    (output,) = outputs(start_all(command(model, run_dir), 1, devices=1))
    assert "exported: " in output, output
    return run_dir


def exported(run_dir):
    return load_file(run_dir / "export" / "unet" / "diffusion_pytorch_model.safetensors")


def class_images(run_dir):
    (folder,) = [path.parent for path in run_dir.rglob("manifest.json")]
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.glob("*.png"))}


def assert_same_run(run_dir, single):
    assert class_images(run_dir) == class_images(single)
    lines, expected = read_metrics(run_dir / "metrics.jsonl"), read_metrics(single / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([line["loss"] for line in lines], [line["loss"] for line in expected], rtol=1e-5)
    tensors = exported(run_dir)
    for name, value in exported(single).items():
        np.testing.assert_allclose(tensors[name], value, atol=FLOAT32_STEPS, err_msg=name)


@pytest.mark.parametrize(
    ("processes", "axes"),
    [(2, ["--mesh.fsdp", 4]), pytest.param(4, ["--mesh.fsdp", 2], marks=pytest.mark.slow)],
)
def test_several_processes_train_what_one_does(model, single, tmp_path, processes, axes):
    running = start_all(command(model, tmp_path / "run", *axes), processes)
    first, *others = outputs(running)
    assert [process.returncode for process in running] == [0] * processes, first
    assert_same_run(tmp_path / "run", single)
    assert "exported: " in first
    for output in others:
        assert not re.search("instance:|loss|exported", output)


def wait_for(folder, pattern, running, seconds=500):
    """Waits until a file has content."""
    end = time.monotonic() + seconds
    while not any(path.stat().st_size for path in folder.glob(pattern)):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in running), outputs(running)
        time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_on_one_process_stops_all_at_the_same_step_and_the_run_goes_on_with_one(model, single, tmp_path):
    run_dir = tmp_path / "run"
    long = ["--train.checkpoint-every", 100000, "--train.steps-per-dispatch", 3]
    running = start_all(command(model, run_dir, *long, "--train.steps", 100000), 2)
    wait_for(tmp_path, MOMENTS["training"], running)
    running[1].send_signal(signal.SIGTERM)
    first, _ = outputs(running)
    assert [process.returncode for process in running] == [0, 0], first
    (saved,) = (int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert saved % 3 == 0
    assert f"stopped and saved at step {saved} of 100000; run the same command again to continue" in first
    (output,) = outputs(start_all(command(model, run_dir, *long, "--train.steps", saved + 1), 1))
    assert f"resumed at step {saved} of {saved + 1}" in output


def kill_and_check_the_other(running, victim):
    """Kills one of two processes; the other has to end, and to say so."""
    running[victim].kill()
    began = time.monotonic()
    survivor = outputs(running)[1 - victim]
    check_told_of(victim, survivor, time.monotonic() - began)
    assert running[1 - victim].returncode == 1


MOMENTS = {  # what a run has written when a process is killed
    "training": "run/metrics.jsonl",
    "claimed": "run/config.yaml",
    "class images": "run/prior/class-00003.png",
    "compiling": "run/samples/step_000000.png",
}
LONG = ["--train.steps", 100000, "--train.checkpoint-every", 100000]
KILLS = [(1, "training"), *(pytest.param(victim, moment, marks=pytest.mark.slow)
         for moment in MOMENTS for victim in (0, 1) if (victim, moment) != (1, "training"))]  # fmt: skip


@pytest.mark.parametrize(("victim", "moment"), KILLS)
def test_a_process_that_is_killed_ends_the_other(model, tmp_path, victim, moment):
    many = ["--data.num-class-images", 400] if moment == "class images" else []
    running = start_all(command(model, tmp_path / "run", *LONG, *many), 2)
    wait_for(tmp_path, MOMENTS[moment], running)
    kill_and_check_the_other(running, victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_while_the_other_waits_for_it_in_a_collective_ends_it(model, tmp_path, victim):
    running = start_all(command(model, tmp_path / "run", *LONG), 2)
    wait_for(tmp_path, MOMENTS["training"], running)
    running[victim].send_signal(signal.SIGSTOP)
    time.sleep(3)
    kill_and_check_the_other(running, victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_under_the_launcher_ends_the_other(model, tmp_path, victim):
    program = [LAUNCHER, 2, sys.executable, "-m", "jaxbooth", *command(model, tmp_path / "run", *LONG)]
    launcher = subprocess.Popen(
        list(map(str, program)), env=environment() | {"DEVICES_PER_PROCESS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(tmp_path, MOMENTS["training"], [launcher])
    os.kill(process_of(launcher.pid, victim), signal.SIGKILL)
    began = time.monotonic()
    output, _ = launcher.communicate(timeout=300)
    survivor = "\n".join(line for line in output.splitlines() if line.startswith(f"[{1 - victim}]"))
    check_told_of(victim, survivor, time.monotonic() - began)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert f"local.sh: process {victim} ended with exit code 137; the others are ended." in output


def process_of(launcher, index):
    """Returns the pid of a launcher's process I."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and words[-3:-1] == [b"--distributed.process-id", str(index).encode()]:
                return int(folder.name)
    raise AssertionError(f"no process {index}")


def test_an_error_on_one_process_is_told_by_all(model, tmp_path):
    port, run_dir = free_port(), tmp_path / "run"
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    running = []
    for index, folder in enumerate(("here", "there")):
        os.chdir(tmp_path / folder)
        running.append(start(command(model, "run"), port, 2, index, devices=1))
    first, second = outputs(running)
    assert [process.returncode for process in running] == [2, 2]
    sentence = "process 1 does not see what process 0 writes there; name a folder on a shared file system"
    assert sentence in first
    assert sentence in second
    assert not list(run_dir.rglob("checkpoints"))


def test_processes_with_other_settings_do_not_start(model, tmp_path):
    port = free_port()
    running = [
        start(command(model, tmp_path / "run", "--seed", index), port, 2, index, devices=1) for index in range(2)
    ]
    for output in outputs(running):
        assert re.search(r"error: process 1 \(.*\) has --seed 1, and process 0 \(.*\) has 0; start the same", output)
    assert [process.returncode for process in running] == [2, 2]


def test_a_process_that_never_starts_is_named(model, tmp_path):
    running = start(command(model, tmp_path / "run", "--distributed.timeout", 3), free_port(), 2, 0, devices=1)
    (output,) = outputs([running])
    assert running.returncode == 2
    assert "not all processes started within 3 s: process 0" in output
    assert "joined; process 1 of 2 did not." in output
    assert not (tmp_path / "run").exists()
