"""scripts/benchmark.py: the turns it gives its subjects, the figures it makes of them, and every subject at work."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
# A subject whose units take half a second each, without waiting for them.
SUBJECT = """
import sys
sys.path.insert(0, {folder!r})
from worker import Subject, serve
serve(lambda: Subject(lambda count: count / 2, {{"device": "NVIDIA H200", "rows": 8}}, lambda: 2**30))
"""


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(benchmark, code: str):
    """Returns a subject that is given as Python code."""
    return benchmark.Peer("subject", [sys.executable, "-c", code], environment())


def test_a_row_is_made_of_the_turns_of_a_subject(benchmark):
    peer = started(benchmark, SUBJECT.format(folder=str(SCRIPT.parent / "bench")))
    peer.wait()
    peer.seconds = [peer.run(4) for _ in range(3)]
    peer.end()
    row = benchmark.row_of(peer, 989e12 / 32)
    assert row["images_per_second"] == 16  # 8 rows in half a second
    assert row["mfu"] == pytest.approx(0.5)  # of the 989 TFLOP/s that an H200 is published with
    assert row["peak_bytes"] == 2**30
    assert "| subject | 16.00 | 16.00 to 16.00 | 1.00 | 50.0% | 1.00 |" in benchmark.table([row])


def test_a_subject_that_ends_early_is_named_with_its_command(benchmark):
    peer = started(benchmark, "raise SystemExit(3)")
    with pytest.raises(SystemExit, match="subject ended with 3"):
        peer.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "subjects", "flags"),
    [
        ("train", ["jaxbooth", "torch", "torch-vae"], ["--rows", "1", "2", "--dispatch", "4"]),
        ("sample", ["jaxbooth", "torch"], ["--rows", "1", "--steps", "2", "--sampler", "ddpm"]),
    ],
)
def test_every_subject_runs_on_the_demo(task, subjects, flags, tmp_path):
    answer = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, task, "--model", "demo", "--subjects", *subjects, *flags, "--json", answer]
    done = subprocess.run(
        [*map(str, command), "--rounds", "1", "--seconds", "0.1"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(answer.read_text())["rows"]
    assert len(rows) == (6 if task == "train" else 2)
    assert all(row["images_per_second"] > 0 for row in rows)
