"""Hostile run folders in `jaxbooth ui`: links that lead out, names that trouble a page, files made to fill memory."""

import os
import resource
import shutil
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest

from jaxbooth.ui.job import TRAIN, JobFiles
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, idle_ui_server


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing."""
    with idle_ui_server(tmp_path / "runs") as running:
        yield running


@pytest.fixture
def secret(tmp_path) -> Path:
    """A run outside of the root, with the word of its prompts in all of its grids."""
    return made_up_run(tmp_path / "secret", prompts=("secret word",))


def new_run(server: UiServer, name: str = "cat", **settings: object) -> Path:
    """Makes a run in the server's root."""
    return made_up_run(server.roots.runs / name, **settings)


def replace_by_link(path: Path, target: Path) -> None:
    """Puts a link in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    ["samples", "samples/step_000020.png", "prior", "prior/class-00000.png", "contact_sheet.png", "validation.jsonl"],
)
def test_a_report_shows_nothing_that_a_link_leads_to(server, secret, name):
    replace_by_link(new_run(server) / name, secret / name)
    answer = server.get("/compare/report?run=cat")
    assert answer.status == 422
    assert "which this page may not read" in answer.text or "is a link to something" in answer.text


def test_a_report_shows_no_class_images_from_outside_of_the_roots(server, secret):
    new_run(server, data={"class_dir": str(secret / "prior")})
    answer = server.get("/compare/report?run=cat")
    assert (answer.status, f"--folders {secret}" in answer.text) == (422, True)


@pytest.mark.parametrize("linked", ["exports", "exports/diffusers-40"])
def test_an_export_removes_nothing_behind_a_link(server, secret, linked):
    precious = secret / "exports" / "diffusers-40" / "cat" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    (new_run(server) / linked).parent.mkdir(exist_ok=True)
    (server.roots.runs / "cat" / linked).symlink_to(secret / linked)
    answer = server.post("/runs/cat/exports", {"format": "diffusers", "step": 40})
    assert (answer.status, "is a link" in answer.text, precious.exists()) == (422, True, True)


def test_a_folder_of_jobs_that_is_a_link_is_neither_read_nor_written(server, secret):
    (secret / "jobs").mkdir()
    (secret / "jobs" / "train.log").write_text("secret log\n")
    (new_run(server) / "jobs").symlink_to(secret / "jobs")
    answer = server.post("/runs/cat/start")
    assert (answer.status, "jobs is a link" in answer.text) == (422, True)
    assert os.listdir(secret / "jobs") == ["train.log"]
    assert "secret log" not in server.get("/runs/cat").text


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", "a\"'b", "<script>alert(1)", "\U0001f600" * 63, "a?b#c%2f"])
def test_a_run_of_any_name_is_shown_and_deleted(server, name):
    folder, address = new_run(server, name), "/runs/" + quote(name, safe="")
    page = server.get("/").text
    assert address in page
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert server.get(address).status == 200
    assert server.post(address + "/delete").status == 200
    assert not folder.exists()
    assert not [path for path in server.roots.server.iterdir() if path.name.startswith("deleted")]


def test_names_that_are_not_utf8_do_not_break_a_page(server):
    new_run(server)
    for folder in (b"bad\xff", b"photos/bad\xff", b"folder\xff"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(server.roots.runs), folder)))
        path.mkdir(parents=True)
        for name in (b"config.yaml", b"a\xfe.png") if folder == b"bad\xff" else (b"a\xfe.png",):
            (path / os.fsdecode(name)).write_text("model: demo\n")
    assert "cat" in server.get("/").text
    assert server.get("/new").status == 200


def black_png(side: int) -> bytes:
    """Returns a black PNG of a few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (3 * side + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_grid_that_was_made_to_fill_the_memory_is_not_decoded(server):
    (new_run(server) / "samples" / "step_000060.png").write_bytes(black_png(6000))
    assert server.get("/runs/cat").status == 200
    assert server.get("/runs/cat/thumbnails/60").status == 404


def test_a_log_of_gigabytes_takes_no_memory(server):
    folder = new_run(server)
    assert "<svg" in server.get("/runs/cat/curves").text
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.truncate(folder / "metrics.jsonl", 2**30)
    assert "<svg" in server.get("/runs/cat/curves").text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # in KiB


@pytest.mark.parametrize("name", ["train.exit", "train.lock", "train.json"])
def test_a_pipe_among_the_jobs_holds_nothing_up(server, name):
    files = JobFiles.of(new_run(server), TRAIN)
    files.enqueue(["--version"])
    files.start(None)
    (files.folder / name).unlink(missing_ok=True)
    os.mkfifo(files.folder / name)
    assert server.get("/").status == 200
    assert server.get("/runs/cat").status == 200
