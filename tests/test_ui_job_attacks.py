"""Jobs in `jaxbooth ui` that were not queued by its root, clocks that go back, and many tabs at once."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jaxbooth.storage.lock import is_held
from jaxbooth.ui import job_process
from jaxbooth.ui.job import TRAIN, JobFiles
from jaxbooth.ui.queue import Queue
from jaxbooth.ui.run_list import RunList
from tests.made_up_runs import made_up_run
from tests.test_ui_queue import QUICK, job_environment, make_run, sleeper, stop_all, wait
from tests.ui_server import idle_ui_server

assert job_environment  # a fixture that is used by being here


def queued(root: Path, name: str) -> JobFiles:
    """Returns a job that waits."""
    files = JobFiles.of(make_run(root, name), TRAIN)
    files.enqueue(QUICK)
    return files


def test_a_run_folder_from_elsewhere_starts_nothing(tmp_path):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.folder.mkdir()
    files.job.write_text(json.dumps({"name": "train", "argv": ["ui", "--host", "0.0.0.0"], "position": 1.0}))
    Queue(tmp_path).start_waiting()
    assert (files.state(), files.log.exists()) == (None, False)


def test_another_command_in_a_waiting_job_is_not_run(tmp_path):
    files = queued(tmp_path, "dog")
    files.write(replace(files.read(), argv=("ui", "--host", "0.0.0.0")))
    assert files.state() is None


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_waiting_run_that_is_copied_or_renamed_waits_no_more(tmp_path, move):
    files = queued(tmp_path, "dog")
    move(files.folder.parent, tmp_path / "copy")
    assert JobFiles.of(tmp_path / "copy", TRAIN).state() is None


def test_a_renamed_run_trains_in_its_new_folder(tmp_path):
    with idle_ui_server(tmp_path) as server:
        made_up_run(tmp_path / "dog", steps=40, logged=20).rename(tmp_path / "hound")
        assert server.post("/runs/hound/start").status == 200
        argv = JobFiles.of(tmp_path / "hound", TRAIN).read().argv
        assert argv == ("train", f"{tmp_path}/hound/config.yaml", f"--run-dir={tmp_path}/hound")


def test_a_clock_that_is_set_back_changes_no_order(tmp_path, monkeypatch):
    queued(tmp_path, "first")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    queued(tmp_path, "second")
    assert [entry.run.name for entry in Queue(tmp_path).entries()] == ["first", "second"]


def test_a_job_that_is_stopped_before_it_could_say_so_is_stopped(tmp_path):
    files = sleeper(tmp_path, "dog")
    Queue(tmp_path).start_waiting()
    files.stop()
    wait(lambda: not is_held(files.lock))
    assert files.state() == "stopped"


def test_two_tabs_that_stop_a_run_let_it_save(tmp_path, monkeypatch):
    files, sent = sleeper(tmp_path, "dog"), []
    Queue(tmp_path).start_waiting()
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    files.stop()
    files.stop()
    assert sent == [(files.process(), signal.SIGTERM)]
    monkeypatch.undo()
    os.kill(files.process(), signal.SIGTERM)
    wait(lambda: not is_held(files.lock))


@pytest.mark.parametrize("content", ["", "-1", "0", "1", "x", "9" * 400])
def test_only_a_process_is_ever_stopped(tmp_path, content):
    files = JobFiles.of(make_run(tmp_path, "dog"), TRAIN)
    files.folder.mkdir()
    files.lock.write_text(content)
    assert files.process() is None


def test_the_number_of_a_former_process_is_gone_before_the_next_one_starts(tmp_path, monkeypatch):
    files, numbers = queued(tmp_path, "dog"), []
    files.lock.write_text("12345")

    def look(*_args, **_options):
        numbers.append(files.process())
        raise OSError

    monkeypatch.setattr(job_process.subprocess, "Popen", look)
    Queue(tmp_path).start_waiting()
    assert numbers == [None]


def test_a_log_that_is_a_link_is_replaced_and_not_followed(tmp_path):
    files = queued(tmp_path / "runs", "dog")
    (tmp_path / "profile").write_text("mine\n")
    files.log.symlink_to(tmp_path / "profile")
    Queue(tmp_path / "runs").start_waiting()
    wait(lambda: files.state() == "done")
    assert (tmp_path / "profile").read_text() == "mine\n"


def test_a_run_that_cannot_be_started_does_not_hold_up_the_next_one(tmp_path):
    first, second = queued(tmp_path, "first"), queued(tmp_path, "second")
    first.lock.mkdir()
    Queue(tmp_path).start_waiting()
    wait(lambda: second.state() == "done")


def test_twenty_tabs_at_once_leave_one_job_or_none(tmp_path):
    with idle_ui_server(tmp_path) as server, ThreadPoolExecutor(20) as tabs:
        for _ in range(3):
            made_up_run(tmp_path / "dog", steps=40, logged=20)
            actions = ["start", "stop", "move", "delete"] * 5
            statuses = [answer.status for answer in tabs.map(lambda act: server.post(f"/runs/dog/{act}"), actions)]
            assert set(statuses) <= {200, 404, 422}
            server.post("/runs/dog/stop")
            assert server.post("/runs/dog/delete").status in (200, 404)
            assert not (tmp_path / "dog").exists()
        assert [run.name for run in RunList(tmp_path).all()] == ["elsewhere"]


def test_a_lock_without_a_job_is_shown(tmp_path):
    files = sleeper(tmp_path, "dog")
    Queue(tmp_path).start_waiting()
    files.job.unlink()
    assert RunList(tmp_path).get(files.folder.parent).state == "running"
    stop_all(files)


def test_a_run_that_is_renamed_while_it_works_does_not_appear_again(tmp_path):
    files = sleeper(tmp_path, "dog")
    Queue(tmp_path).start_waiting()
    wait(lambda: (tmp_path / "other" / "dog" / ".jaxbooth-ui" / "token").exists())  # the job has begun
    process = files.process()
    files.folder.parent.rename(tmp_path / "hound")
    os.kill(process, signal.SIGTERM)
    wait(lambda: not is_held(tmp_path / "hound" / "jobs" / "train.lock"))
    assert not files.folder.parent.exists()
