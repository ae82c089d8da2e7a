"""A disk that is full under `jaxbooth ui`: said in a sentence, and nothing is half done."""

import errno
import os

import pytest

from jaxbooth.ui import photos
from jaxbooth.ui.disk_errors import describe_disk_error
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, idle_ui_server

FULL = "The disk is full; free some space, and try again."


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of one run that goes on, whose queue starts nothing."""
    made_up_run(tmp_path / "cat", logged=20)
    with idle_ui_server(tmp_path) as running:
        yield running


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Lets no file be created any more."""

    def refuse(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(photos.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(os, "replace", refuse)


@pytest.mark.parametrize(
    ("path", "form"),
    [("start", {}), ("extend", {"steps": 80}), ("sample-requests", {"prompt": "a", "seed": 0, "num": 1})],
)
def test_a_full_disk_is_said_by_every_button(server, full_disk, path, form):
    answer = server.post(f"/runs/cat/{path}", form, **{"hx-request": "true"})
    assert FULL in answer.text
    assert server.get("/").status == 200


def test_a_full_disk_is_said_beside_the_photo(server, full_disk):
    server.post("/new/photos", {"name": "dog"})
    answer = server.send("POST", "/new/photos/dog/upload?name=a.png", b"x", server.bearer)
    assert (answer.status, answer.text) == (500, f'{{"problem":"{FULL}"}}')


def test_a_file_that_cannot_be_written_is_named():
    error = PermissionError(errno.EACCES, "Permission denied", "/runs/cat/config.yaml")
    assert describe_disk_error(error).startswith("/runs/cat/config.yaml cannot be used (Permission denied); ")
