"""The list of runs in `jaxbooth ui`, read from run folders alone."""

import http.client
import json
import os
import time
from pathlib import Path

import pytest

from jaxbooth.ui.job import TRAIN, JobFiles
from jaxbooth.ui.run_list import RunList
from tests.made_up_runs import made_up_run, write_metrics
from tests.ui_server import UiServer, idle_ui_server


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing."""
    with idle_ui_server(tmp_path) as running:
        yield running


def new_run(server: UiServer, name: str, **settings: object) -> Path:
    """Makes a run in the server's root."""
    return made_up_run(server.roots.runs / name, **settings)


def state(server: UiServer, name: str) -> str:
    """Returns the state that the list shows of a run."""
    return next(run.state for run in RunList(server.roots.runs).all() if run.name == name)


def test_a_run_says_what_it_learns_and_how_far_it_is(server):
    new_run(server, "dog", logged=25, prompts=("a photo of sks dog", "a photo of dog"), lora={"rank": 4})
    page = server.get("/runs").text
    assert "a photo of sks dog · demo · LoRA of rank 4" in page
    assert "25 of 40" in page
    assert 'src="/runs/dog/thumbnails/40?v=' in page


def test_a_run_is_started_once_from_two_tabs(server):
    new_run(server, "dog", logged=25)
    assert server.post("/runs/dog/start").status == 200
    second = server.post("/runs/dog/start")
    assert second.status == 422
    assert "dog: train is queued already." in second.text
    assert state(server, "dog") == "queued"


def test_a_waiting_run_is_taken_out(server):
    new_run(server, "dog", logged=25)
    server.post("/runs/dog/start")
    server.post("/runs/dog/stop")
    assert state(server, "dog") == "stopped"


def test_waiting_runs_are_reordered(server):
    for name in ("a", "b"):
        new_run(server, name, logged=25)
        server.post(f"/runs/{name}/start")
    page = server.post("/runs/b/move", {"direction": "up"}).text
    assert page.index('href="/runs/b"') < page.index('href="/runs/a"')


def test_a_run_is_deleted_with_all_its_files(server):
    folder = new_run(server, "dog")
    assert server.post("/runs/dog/delete").status == 200
    assert not folder.exists()
    assert [path.name for path in server.roots.runs.iterdir() if "dog" in path.name] == []


@pytest.mark.parametrize(("action", "sentence"), [("start", "is being trained by another"), ("delete", "is in use")])
def test_a_run_that_another_process_trains_is_shown_and_not_touched(server, action, sentence):
    page = server.get("/runs").text
    assert "trained by another process" in page
    assert "/runs/elsewhere/stop" not in page
    answer = server.post(f"/runs/elsewhere/{action}")
    assert answer.status == 422
    assert sentence in answer.text


def test_a_waiting_run_is_not_deleted(server):
    folder = new_run(server, "dog")
    server.post("/runs/dog/start")
    assert server.post("/runs/dog/delete").status == 422
    assert folder.exists()


def test_a_folder_that_cannot_be_read_says_why_and_does_not_hide_the_others(server):
    folder = new_run(server, "bad")
    (folder / "config.yaml").write_text("train: {steps: many}")
    new_run(server, "dog")
    page = server.get("/runs").text
    assert "train.steps = &#39;many&#39; is not valid: a whole number is needed." in page
    assert 'href="/runs/dog"' in page


def test_names_and_prompts_are_shown_as_text(server):
    new_run(server, "<img src=x onerror=alert(1)>", prompts=("</script><script>alert(2)</script>", "a cat"))
    page = server.get("/").text
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<script>alert" not in page


def test_a_run_is_read_again_only_when_its_files_have_changed(server, monkeypatch):
    folder, runs = new_run(server, "dog", logged=10), RunList(server.roots.runs)
    assert runs.get(folder).progress.step == 10
    reads = []
    monkeypatch.setattr("jaxbooth.ui.run_list.load_config", lambda path: reads.append(path))
    assert runs.get(folder).progress.step == 10
    assert reads == []
    monkeypatch.undo()
    write_metrics(folder, 20)
    assert runs.get(folder).progress.step == 20


def test_damaged_lines_at_the_end_of_a_log_are_passed_over(server):
    folder = new_run(server, "dog", logged=12)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"step": "x"}\n{"step": 13, "lo')
    assert RunList(server.roots.runs).get(folder).progress.step == 12


def test_an_open_page_hears_of_a_change(server):
    folder = new_run(server, "dog", logged=10)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("GET", "/events?run=dog", headers=server.bearer)
    stream = connection.getresponse()
    first = [stream.readline() for _ in range(14)]
    assert b"data: metrics\n" in first
    time.sleep(2.5)  # until the files were looked at once
    write_metrics(folder, 11)
    heard = b""
    while b"data: metrics" not in heard:
        heard = stream.readline()
        assert heard
    connection.close()


def test_a_stopped_job_of_the_page_is_no_failure(server):
    folder = new_run(server, "dog", logged=25)
    files = JobFiles.of(folder, TRAIN)
    files.folder.mkdir()
    files.job.write_text(json.dumps({"name": "train", "argv": ["train"], "position": 1.0, "started": time.time()}))
    files.exit.write_text("143")
    os.utime(files.folder)
    assert state(server, "dog") == "stopped"
