"""Whole commands under faults: kills, a damaged checkpoint, a full disk, a signal before the first step."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxbooth.runs.metric_writer import read_metrics
from tests.commands import SHORT, environment, jaxbooth, start, succeed, train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from jaxbooth.cli.main import main; main()
"""


def test_kills_lose_nothing(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "faults.py", "--kills", "3", "--out", tmp_path]
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "losses 0, steps repeated " in done.stdout
    assert int(done.stdout.split("kills ")[-1].split(",")[0]) >= 3


def test_a_damaged_newest_checkpoint_is_told_by_every_command_and_trained_again(tmp_path):
    run_dir = tmp_path / "run"
    succeed(train(run_dir))
    whole = read_metrics(run_dir / "metrics.jsonl")
    export = tmp_path / "whole"
    shutil.copytree(run_dir / "export", export)
    (run_dir / "checkpoints" / "6" / "state" / "manifest.ocdbt").write_bytes(b"garbage")
    told = "is damaged ("
    drawn = succeed(jaxbooth("sample", run_dir, "--prompt", "a cat", "--num", 1, "--steps", 1, "--out", tmp_path / "a"))
    written = succeed(jaxbooth("export", run_dir, "--out", tmp_path / "b"))
    assert told in drawn
    assert told in written
    assert f"exported step 3 of {run_dir}" in written
    shutil.rmtree(run_dir / "export")
    output = succeed(train(run_dir))
    assert output.count(told) == 1
    assert "resumed at step 3 of 6" in output
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"3", "6", "damaged-6"}
    again = read_metrics(run_dir / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in again] == [(line["step"], line["loss"]) for line in whole]
    for path in (file for file in export.rglob("*") if file.is_file()):
        assert (run_dir / "export" / path.relative_to(export)).read_bytes() == path.read_bytes(), path


def test_a_disk_that_fills_up_is_one_sentence_and_the_same_command_continues(tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", *SHORT, "--run-dir", run_dir, "--train.steps", 6]
    failed = jaxbooth(*arguments, code=LIMITED)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: the disk is full ({run_dir / 'checkpoints'})")
    assert failed.stderr.count("\n") == 1
    succeed(jaxbooth(*arguments))
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_second_training_is_refused_while_the_first_goes_on_and_sigterm_before_the_first_step_ends_well(tmp_path):
    run_dir, images = tmp_path / "run", tmp_path / "class"
    arguments = ["train", *SHORT, "--data.class-dir", images, "--train.steps", 6, "--run-dir"]
    many = [*arguments, run_dir, "--data.num-class-images", 2000]
    first = start(*many)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None and not list(images.glob("class-*.png")):
        time.sleep(0.1)
    second = jaxbooth(*many)
    assert second.returncode == 2
    assert f"is being trained by process {first.pid} on {os.uname().nodename}" in second.stderr
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert output.rstrip().endswith(f"stopped; run the same command again to continue {run_dir}.")
    made = {path.name: path.read_bytes() for path in images.glob("class-*.png")}
    succeed(jaxbooth(*arguments, tmp_path / "other", "--data.num-class-images", len(made) + 2))
    found = {path.name: path.read_bytes() for path in images.glob("class-*.png")}
    assert len(found) == len(made) + 2
    assert made.items() <= found.items()
