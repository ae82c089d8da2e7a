"""A run folder is trained by one process at a time, and a killed one is not in the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbooth.claim import claim
from jaxbooth.config import Config, dump_config, load_config
from jaxbooth.errors import UserError
from jaxbooth.hosts.link import Alone
from jaxbooth.lock import LOCK, locked

HOLDER = "import sys, time; from pathlib import Path; from jaxbooth.lock import locked\n"
HOLDER += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of tmp_path/run."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_training_is_refused_and_told_who_holds_the_folder(tmp_path, other):
    expected = rf"run is being trained by process {other.pid} on {os.uname().nodename}; wait for its end"
    with pytest.raises(UserError, match=expected), claim(Config(run_dir=tmp_path / "run"), Alone(lambda: None)):
        pass
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK}


def test_the_lock_of_a_killed_process_is_not_in_the_way(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with claim(Config(run_dir=tmp_path / "run"), Alone(lambda: None)) as run:
        assert (run.root / LOCK).exists()
    assert {path.name for path in run.root.iterdir()} == {"config.yaml"}


def test_it_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the work"), locked(tmp_path):
            raise RuntimeError("of the work")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_work_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(OSError, match="of the work"), claim(Config(run_dir=tmp_path / "run"), Alone(lambda: None)):
        raise OSError(28, "of the work")


def test_what_a_killed_process_left_of_its_files_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "config.yaml").write_text(dump_config(Config(run_dir=tmp_path)))
    for name in (".config.yaml.x1.part", "samples/.step_000000.png.x2.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / "samples" / "step_000001.png").write_text("whole")
    with claim(Config(run_dir=tmp_path), Alone(lambda: None)) as run:
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "samples/step_000001.png"}
    assert load_config(run.config) == Config(run_dir=tmp_path)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"), claim(Config(run_dir=tmp_path), Alone(lambda: None)):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


def test_a_folder_that_cannot_be_written_is_refused():
    run_dir = Path("/proc/jaxbooth-run")
    with (
        pytest.raises(UserError, match=f"--run-dir {run_dir} cannot be written"),
        claim(Config(run_dir=run_dir), Alone(lambda: None)),
    ):
        pass
