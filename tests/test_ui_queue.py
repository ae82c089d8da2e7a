"""The queue of `jaxbooth ui`: jobs are files in run folders, processes of their own, and one at a time on devices."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxbooth.config.load import dump_config, load_config
from jaxbooth.errors import UserError
from jaxbooth.storage.lock import LOCK, is_held, locked
from jaxbooth.ui.job import TRAIN, JobFiles
from jaxbooth.ui.queue import Queue
from jaxbooth.ui.run_list import RunList
from tests.commands import environment

SECONDS = 180
# Commands that end at once, without a device: one that works, and one that is refused.
QUICK, REFUSED = ["--version"], ["train", "no-such-file.yaml"]


def make_run(root: Path, name: str) -> Path:
    """Makes the folder of a run that was not started."""
    folder = root / name
    folder.mkdir(parents=True)
    config = load_config("demo", {"run_dir": str(folder)})
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def sleeper(root: Path, name: str) -> JobFiles:
    """Queues a job that runs for a long time: the page itself, which waits for a browser."""
    files = JobFiles.of(make_run(root, name), TRAIN)
    files.enqueue(["ui", "--root", str(root / "other" / name), "--port", "0"])
    return files


def wait(condition) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stop_all(*jobs: JobFiles) -> None:
    """Ends jobs and waits for their processes."""
    for files in jobs:
        files.stop()
    for files in jobs:
        wait(lambda files=files: not is_held(files.lock))


@pytest.fixture(autouse=True)
def job_environment(monkeypatch):
    """Jobs find this package."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def test_a_job_runs_in_a_process_of_its_own_and_leaves_its_exit_code(tmp_path):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.enqueue(QUICK)
    assert files.state() == "queued"
    Queue(tmp_path).start_waiting()
    wait(lambda: files.state() == "done")
    assert files.exit_code() == 0
    assert files.log_lines()[-1].startswith("jaxbooth ")
    assert not is_held(files.lock)


def test_a_refused_command_leaves_its_sentence(tmp_path):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.enqueue(REFUSED)
    Queue(tmp_path).start_waiting()
    wait(lambda: files.state() == "failed")
    assert files.exit_code() == 2
    assert files.error().startswith("no-such-file.yaml is neither a file nor one of the shipped configurations")
    run = RunList(tmp_path).get(files.folder.parent)
    assert (run.state, run.message) == ("failed", files.error())


def test_one_job_at_a_time_has_the_devices_and_the_first_comes_first(tmp_path):
    first, second = sleeper(tmp_path, "first"), sleeper(tmp_path, "second")
    queue = Queue(tmp_path)
    queue.start_waiting()
    queue.start_waiting()
    assert (first.state(), second.state()) == ("running", "queued")
    stop_all(first)
    queue.start_waiting()
    assert second.state() == "running"
    stop_all(second)


def test_each_set_of_devices_has_a_job(tmp_path):
    jobs = [sleeper(tmp_path, name) for name in ("a", "b", "c")]
    Queue(tmp_path, ["0", "1"]).start_waiting()
    assert [files.state() for files in jobs] == ["running", "running", "queued"]
    assert [jobs[0].read().devices, jobs[1].read().devices] == ["0", "1"]
    stop_all(*jobs)


def test_a_job_outlives_the_server_and_the_next_one_knows_it(tmp_path):
    files = sleeper(tmp_path, "dog")
    script = (
        "import sys, pathlib; from jaxbooth.ui.queue import Queue; Queue(pathlib.Path(sys.argv[1])).start_waiting()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment())
    assert files.state() == "running"
    assert Queue(tmp_path).free_devices(Queue(tmp_path).entries()) == []
    stop_all(files)


def test_a_killed_job_is_told_from_one_that_failed(tmp_path):
    files = sleeper(tmp_path, "dog")
    Queue(tmp_path).start_waiting()
    os.kill(int(files.lock.read_text()), signal.SIGKILL)
    wait(lambda: files.state() == "killed")
    assert RunList(tmp_path).get(files.folder.parent).state == "killed"


def test_a_job_cannot_be_queued_twice(tmp_path):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.enqueue(QUICK)
    with pytest.raises(UserError, match="dog: train is queued already"):
        files.enqueue(QUICK)


def test_a_waiting_job_changes_places_with_its_neighbour(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "c")]
    for run in runs:
        JobFiles.of(run, TRAIN).enqueue(QUICK)
    queue = Queue(tmp_path)
    queue.move(runs[2], "up")
    assert [entry.run.name for entry in queue.entries()] == ["a", "c", "b"]
    queue.move(runs[0], "up")  # is the first already
    queue.move(runs[0], "down")
    assert [run.name for run in RunList(tmp_path).all()] == ["c", "a", "b"]


def test_nothing_starts_while_another_process_trains_in_the_root(tmp_path):
    elsewhere, waiting = make_run(tmp_path, "elsewhere"), JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    waiting.enqueue(QUICK)
    with locked(elsewhere, on_loss=pytest.fail):
        Queue(tmp_path).start_waiting()
        assert waiting.state() == "queued"
        assert RunList(tmp_path).get(elsewhere).state == "elsewhere"
        assert is_held(elsewhere / LOCK)
    Queue(tmp_path).start_waiting()
    wait(lambda: waiting.state() == "done")


def test_a_lock_that_a_killed_training_left_does_not_count(tmp_path):
    run = make_run(tmp_path, "dog")
    (run / LOCK).write_text('{"pid": 1, "host": "here"}')
    assert not is_held(run / LOCK)
    assert RunList(tmp_path).get(run).state == "new"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "train"}', '{"name": "train", "argv": 3, "position": 1}'])
def test_a_damaged_job_is_none(tmp_path, content):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.folder.mkdir()
    files.job.write_text(content)
    assert files.state() is None
    Queue(tmp_path).start_waiting()
    files.enqueue(QUICK)
    assert files.state() == "queued"
