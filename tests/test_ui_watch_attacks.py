"""The page of one run in `jaxbooth ui`: addresses, links and prompts of an attacker, damaged files, a lost folder."""

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.made_up_runs import made_up_run, write_grid
from tests.ui_server import UiServer, idle_ui_server

PARTS = ("state", "progress", "samples", "curves", "checkpoints", "own", "log")


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing."""
    with idle_ui_server(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def server_of_cat(tmp_path_factory) -> UiServer:
    """A server of one run, which nothing changes."""
    root = tmp_path_factory.mktemp("still")
    made_up_run(root / "cat", samples=(0, 20, 40))
    with idle_ui_server(root) as running:
        yield running


def new_run(server: UiServer, name: str = "cat", **settings: object) -> Path:
    """Makes a run in the server's root."""
    return made_up_run(server.roots.runs / name, **settings)


@pytest.mark.parametrize("path", [
    "samples/%s/0/0", "samples/20/%s/0", "samples/20/0/%s", "thumbnails/%s", "own/%s/0", "own/1/%s",
])  # fmt: skip
@pytest.mark.parametrize("value", ["-1", "1e9", "x", "9" * 30, "99", "..", "%2e%2e", "%00", "..%2f..%2fx", "٣"])
def test_addresses_of_images_that_lead_nowhere_find_nothing(server_of_cat, path, value):
    escaped = quote(value, safe="%.")
    assert server_of_cat.get(f"/runs/cat/{path % escaped}").status == 404


@pytest.mark.parametrize("query", ["at=-1", "at=x", "at=" + "9" * 40, "at=99", "last=x", "scale=<b>", "seen=%00"])
def test_any_query_shows_something(server_of_cat, query):
    for part in (*PARTS, "samples/images"):
        assert server_of_cat.get(f"/runs/cat/{part}?{query}").status == 200


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".jaxbooth-ui", "..%2fcat", "nothing", "%00"])
def test_runs_outside_of_the_root_are_not_there(server_of_cat, name):
    for part in ("", "/state", "/log", "/contact-sheet"):
        assert server_of_cat.get(f"/runs/{name}{part}").status in (404, 303)


def test_links_that_lead_out_of_the_run_are_not_followed(server, tmp_path_factory):
    folder, secret = new_run(server, samples=(0, 20)), tmp_path_factory.mktemp("outside")
    write_grid(secret, 40, ("a secret",), 64)
    (secret / "log").write_text("a secret\n")
    (secret / "metrics").write_text('{"step": 1, "loss": 0.123456}\n')
    (folder / "samples" / "step_000040.png").symlink_to(secret / "samples" / "step_000040.png")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "train.log").symlink_to(secret / "log")
    (folder / "contact_sheet.png").unlink()
    (folder / "contact_sheet.png").symlink_to(secret / "samples" / "step_000040.png")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(secret / "metrics")
    (folder / "sample_requests").symlink_to(secret / "samples")
    for path in ("", *(f"/{part}" for part in PARTS)):
        answer = server.get(f"/runs/cat{path}")
        assert answer.status == 200
        assert "a secret" not in answer.text
        assert "0.1235" not in answer.text
    for path in ("samples/40/0/0", "thumbnails/40", "contact-sheet", "own/step_000040/0"):
        assert server.get(f"/runs/cat/{path}").status == 404
    assert server.post("/runs/cat/own/step_000040/remove").status == 404
    assert server.post("/runs/cat/own/1/remove").status == 404
    asked = server.post("/runs/cat/sample-requests", {"prompt": "a cat", "seed": 0, "num": 1})
    assert asked.status == 404


def test_prompts_stay_text_wherever_they_come_from(server):
    folder = new_run(server, prompts=("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>"))
    (folder / "sample_requests").mkdir()
    (folder / "sample_requests" / "1.json").write_text('{"prompt": "</script><script>alert(3)"}')
    (folder / "sample_requests" / "1.error").write_text("<script>alert(4)</script>")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "<script>alert(5)</script>": 1}\n')
    page = server.get("/runs/cat").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "style=" not in page


def test_damaged_lines_and_grids_leave_the_page_whole(server):
    folder = new_run(server, samples=(0, 20))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"step": 41, "loss": NaN}\n{"step": 42, "loss": "x", "images_per_second": []}\n')
        file.write(b'{"step": 43, "loss": 1' + b"0" * 400 + b'}\n{"step": -1, "loss": 1}\n{"step": 44, "lo')
    (folder / "samples" / "step_000020.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page = server.get("/runs/cat")
    assert page.status == 200
    assert "The samples of step 20 cannot be read." not in page.text  # the base model's are there
    assert server.get("/runs/cat/samples/20/0/0").status == 404


def test_a_run_that_is_deleted_while_its_page_is_open_is_not_found(server):
    folder = new_run(server)
    assert server.get("/runs/cat").status == 200
    shutil.rmtree(folder)
    for part in PARTS:
        answer = server.get(f"/runs/cat/{part}", **{"hx-request": "true"})
        assert answer.status == 404
        assert "There is nothing here." in answer.text
    assert server.post("/runs/cat/sample-requests", {"prompt": "a cat", "seed": 0, "num": 1}).status == 404


def test_the_log_is_escaped_and_ends_with_the_newest_line(server):
    folder = new_run(server)
    (folder / "jobs").mkdir()
    lines = [f"line {number}" for number in range(1000)] + ["<b>\x1b[31mred"]
    (folder / "jobs" / "train.log").write_text("\n".join(lines))
    part = server.get("/runs/cat/log").text
    assert "&lt;b&gt;\\x1b[31mred</pre>" in part
    assert "line 999\n" in part
    assert "line 500\n" not in part
