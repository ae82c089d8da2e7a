"""A run folder is trained by one process at a time, and a killed one is not in the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.output import output
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.errors import UserError
from jaxbooth.runs.lock import lock_run
from jaxbooth.storage.files import write_text
from jaxbooth.storage.lock import LOCK, locked

HOLDER = """
import sys, time
from pathlib import Path
from jaxbooth.runs.lock import lock_run
from jaxbooth.config.run_config import Config
from jaxbooth.storage.files import write_text
from jaxbooth.distributed.group import SingleProcess
with lock_run(Config(run_dir=Path(sys.argv[1])), SingleProcess(lambda: None)) as run:
    print('held', flush=True)
    for number in range(6000):
        if len(sys.argv) > 2:
            write_text(run.root / "prior" / str(number), "an image")
        time.sleep(0.01)
"""


def hold(folder, *writes):
    """Starts a process that holds a run folder, and writes a file into it again and again if told so."""
    command = [sys.executable, "-c", HOLDER, str(folder), *writes]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    """A process that holds tmp_path/run."""
    process = hold(tmp_path / "run")
    yield process
    process.kill()
    process.communicate()


def alone():
    return SingleProcess(lambda: None)


def test_a_second_training_is_refused_and_told_who_holds_the_folder(tmp_path, other):
    expected = rf"run is being trained by process {other.pid} on {os.uname().nodename}; wait for its end"
    with pytest.raises(UserError, match=expected), lock_run(Config(run_dir=tmp_path / "run"), alone()):
        pass
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK, "config.yaml"}


def test_the_lock_of_a_killed_process_is_not_in_the_way(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with lock_run(Config(run_dir=tmp_path / "run"), alone()) as run:
        assert (run.root / LOCK).exists()
    assert {path.name for path in run.root.iterdir()} == {"config.yaml"}


def test_a_lock_file_that_is_removed_by_hand_admits_no_other(tmp_path, other):
    other.send_signal(signal.SIGSTOP)  # it cannot notice
    (tmp_path / "run" / LOCK).unlink()
    with (
        pytest.raises(UserError, match="run is being trained by another process"),
        lock_run(Config(run_dir=tmp_path / "run"), alone()),
    ):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced", "lock"])
def test_a_folder_or_lock_that_goes_away_ends_the_training_in_one_sentence_and_nothing_comes_back(tmp_path, what):
    run = tmp_path / "run"
    process = hold(run, "writes")
    time.sleep(0.3)
    if what == "deleted":
        while run.exists():
            shutil.rmtree(run, ignore_errors=True)
    elif what == "lock":
        (run / LOCK).unlink()
    else:
        run.rename(tmp_path / "elsewhere")
        if what == "replaced":
            run.mkdir()
    began = time.monotonic()
    _, printed = process.communicate(timeout=120)
    assert time.monotonic() - began < 15
    assert process.returncode == 1
    expected = (
        f"{run / LOCK} was removed during" if what == "lock" else f"{run} was deleted or moved during the training"
    )
    assert printed.startswith(f"error: {expected}")
    assert printed.count("\n") == 1
    assert len(printed) < 500
    assert run.exists() == (what in ("replaced", "lock"))
    assert what != "replaced" or not list(run.iterdir())


def fail(text):
    raise AssertionError(text)


def test_a_link_in_the_place_of_the_lock_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("a year of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to("../notes.txt")
    with pytest.raises(UserError, match="cannot be written"), lock_run(Config(run_dir=tmp_path / "run"), alone()):
        pass
    assert (tmp_path / "notes.txt").read_text() == "a year of work"


def test_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / LOCK)
    expected = r"run cannot be written \(its .lock is not a file\)"
    with pytest.raises(UserError, match=expected), lock_run(Config(run_dir=tmp_path / "run"), alone()):
        pass


def test_a_lock_that_someone_else_took_is_not_removed(tmp_path):
    lost = []
    with locked(tmp_path, lost.append):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def started(folder, **changes):
    """Makes a run folder whose run stopped before its first checkpoint, and returns what it was started with."""
    config = Config(run_dir=folder, **changes)
    (folder / "samples").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "base_model.json").write_text('{"fingerprint": "of another model"}')
    (folder / "images.json").write_text("{}")
    (folder / "samples" / "step_000250.png").write_text("of other settings")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return config


def test_a_run_without_a_checkpoint_begins_anew_with_other_settings(tmp_path, capsys):
    folder = tmp_path / "run"
    started(folder, seed=1)
    (folder / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    with lock_run(Config(run_dir=folder, seed=2), alone()) as run:
        assert load_config(run.config).seed == 2
    assert "has no checkpoint yet; it begins anew with these settings" in " ".join(capsys.readouterr().out.split())
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "samples.superseded/step_000250.png", "metrics.jsonl"}


@pytest.mark.parametrize("result", ["checkpoints/5", "checkpoints/damaged-5", "export"])
def test_a_run_with_a_result_keeps_its_settings_and_files(tmp_path, result):
    folder = tmp_path / "run"
    started(folder, seed=1)
    (folder / result).mkdir()
    with (
        pytest.raises(UserError, match="belongs to a run with --seed 1, and this one has 2"),
        lock_run(Config(run_dir=folder, seed=2), alone()),
    ):
        pass
    with lock_run(Config(run_dir=folder, seed=1), alone()):
        pass
    assert (folder / "base_model.json").exists()
    assert (folder / "samples" / "step_000250.png").exists()


def test_the_log_file_of_the_command_may_lie_in_a_run_folder_that_does_not_exist_yet(tmp_path):
    output.configure(False, tmp_path / "run" / "logs" / "train.log")
    try:
        with lock_run(Config(run_dir=tmp_path / "run"), alone()) as run:
            assert run.config.exists()
    finally:
        output.configure(False, None)


def test_it_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the work"), locked(tmp_path, fail):
            raise RuntimeError("of the work")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_work_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(OSError, match="of the work"), lock_run(Config(run_dir=tmp_path / "run"), alone()):
        raise OSError(28, "of the work")


def test_what_a_killed_process_left_of_its_files_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "config.yaml").write_text(dump_config(Config(run_dir=tmp_path)))
    for name in (".config.yaml.x1.part", "samples/.step_000000.png.x2.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / "samples" / "step_000001.png").write_text("whole")
    with lock_run(Config(run_dir=tmp_path), alone()) as run:
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "samples/step_000001.png"}
    assert load_config(run.config) == Config(run_dir=tmp_path)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"), lock_run(Config(run_dir=tmp_path), alone()):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


def test_a_folder_that_cannot_be_written_is_refused():
    run_dir = Path("/proc/jaxbooth-run")
    with (
        pytest.raises(UserError, match=f"--run-dir {run_dir} cannot be written"),
        lock_run(Config(run_dir=run_dir), SingleProcess(lambda: None)),
    ):
        pass


def test_a_folder_that_goes_away_while_a_file_is_written_is_told_in_the_same_words(tmp_path, monkeypatch):
    losses, replace = [], os.replace
    (tmp_path / "run").mkdir()

    def move_first(source, target):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        replace(source, target)

    with locked(tmp_path / "run", losses.append):
        monkeypatch.setattr(os, "replace", move_first)
        with pytest.raises(FileNotFoundError):
            write_text(tmp_path / "run" / "a.txt", "a")
    assert losses
    assert "run was deleted or moved during the training" in losses[0]
