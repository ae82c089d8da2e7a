"""The page of one run in `jaxbooth ui`: state, curves, samples, own prompts, log; and what it does not let through."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxbooth.config.load import load_config
from jaxbooth.storage.lock import locked
from jaxbooth.ui.job import TRAIN, JobFiles
from tests.made_up_runs import made_up_run, photo, write_grid
from tests.ui_server import UiServer, ui_server

PARTS = ("state", "progress", "samples", "curves", "checkpoints", "own", "log")


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing: another process trains there."""
    made_up_run(tmp_path / "elsewhere", logged=7)
    with locked(tmp_path / "elsewhere", on_loss=pytest.fail), ui_server(tmp_path) as running:
        yield running


def new_run(server: UiServer, name: str = "cat", **settings: object) -> Path:
    """Makes a run in the server's root."""
    return made_up_run(server.roots.runs / name, **settings)


def image_of(content: bytes) -> Image.Image:
    """Opens an image."""
    return Image.open(io.BytesIO(content))


# The head


def test_the_page_says_what_is_learned_and_how_far_it_is(server):
    new_run(server, logged=25, lora={"rank": 4})
    page = server.get("/runs/cat")
    assert page.status == 200
    for words in ("a photo of a sks cat", "LoRA of rank 4", "step 25 of 40", "stopped", "Continue"):
        assert words in page.text
    assert re.search(r"lora.rank</dt><dd>4", page.text)


def test_every_part_is_sent_again_only_when_it_differs(server):
    new_run(server)
    for part in PARTS:
        first = server.get(f"/runs/cat/{part}")
        assert first.status == 200, part
        seen = re.findall(r'name="seen" value="(\w+)"', first.text)[-1]
        assert server.get(f"/runs/cat/{part}?seen={seen}").status == 204, part
        assert server.get(f"/runs/cat/{part}?seen=other").status == 200, part


def test_a_button_of_the_page_answers_that_the_state_has_changed(server):
    new_run(server, logged=25)
    answer = server.post("/runs/cat/start", **{"hx-target": "state"})
    assert (answer.status, answer.headers["hx-trigger"]) == (204, "changed-state")
    assert "Take out of the queue" in server.get("/runs/cat/state").text
    server.post("/runs/cat/stop", **{"hx-target": "state"})
    assert server.post("/runs/cat/delete", **{"hx-target": "state"}).headers["hx-redirect"] == "/"


def test_a_failed_run_says_why(server):
    folder = new_run(server, logged=25)
    files = JobFiles.of(folder, TRAIN)
    files.enqueue(["train", "x"])
    files.start(None)
    files.exit.write_text("1")
    files.log.write_text("--- now\nerror: the loss of step 26 is not finite; <b>lower</b> it.\n")
    page = server.get("/runs/cat").text
    assert "the loss of step 26 is not finite; &lt;b&gt;lower&lt;/b&gt; it." in page
    assert "failed" in page


def test_a_killed_run_says_where_it_goes_on(server):
    folder = new_run(server, logged=25)
    files = JobFiles.of(folder, TRAIN)
    files.enqueue(["train", "x"])
    files.start(None)
    assert "Continue goes on from the checkpoint of step 40." in server.get("/runs/cat/state").text


def test_a_run_that_another_process_trains_is_shown_and_not_touched(server):
    page = server.get("/runs/elsewhere").text
    assert "trained by another process" in page
    assert "step 7 of 40" in page
    for action in ("stop", "start", "delete", "extend"):
        assert f"/runs/elsewhere/{action}" not in page
    assert server.post("/runs/elsewhere/extend", {"steps": 90}).status == 422
    asked = server.post("/runs/elsewhere/sample-requests", {"prompt": "a cat", "seed": 0, "num": 1})
    assert asked.status == 422
    assert not (server.roots.runs / "elsewhere" / "sample_requests").exists()


def test_a_run_trains_on_to_another_number_of_steps(server):
    folder = new_run(server)
    assert "Train on to step" in server.get("/runs/cat/state").text
    assert server.post("/runs/cat/extend", {"steps": 60}, **{"hx-target": "state"}).status == 204
    assert load_config(folder / "config.yaml").train.steps == 60
    assert JobFiles.of(folder, TRAIN).state() == "queued"


@pytest.mark.parametrize("steps", ["", "-1", "0", "39", "1e3", "4" * 30, "٤٠٠", "100000001"])
def test_a_number_of_steps_that_cannot_be_is_refused(server, steps):
    folder = new_run(server)
    answer = server.post("/runs/cat/extend", {"steps": steps})
    assert answer.status == 422
    assert "The number of steps must be a whole number from 40 to 100000000." in answer.text
    assert load_config(folder / "config.yaml").train.steps == 40


def test_steps_that_decide_what_was_trained_cannot_be_changed(server):
    new_run(server, text={"placeholder_tokens": ["<cat>"], "token_training": "pivotal"}, lora={"rank": 4})
    answer = server.post("/runs/cat/extend", {"steps": 60})
    assert answer.status == 422
    assert "--train.steps" in answer.text


def test_the_contact_sheet_is_shown(server):
    new_run(server)
    sheet = server.get("/runs/cat/contact-sheet?v=1")
    assert sheet.headers["content-type"] == "image/png"
    assert "immutable" in sheet.headers["cache-control"]


# The samples


def test_images_are_cut_from_the_grid_pixel_for_pixel(server):
    new_run(server, samples=(0, 20), side=64)
    tile = server.get("/runs/cat/samples/20/1/1")
    assert tile.headers["content-type"] == "image/png"
    assert "immutable" in tile.headers["cache-control"]
    assert image_of(tile.body).tobytes() == photo(20_003, 64).tobytes()


def test_a_thumbnail_is_a_small_jpeg(server):
    new_run(server, side=256)
    thumbnail = server.get("/runs/cat/thumbnails/40")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert image_of(thumbnail.body).size == (144, 144)
    assert "immutable" in thumbnail.headers["cache-control"]


def test_the_slider_stands_at_the_newest_step_beside_the_base_model(server):
    folder = new_run(server, samples=(0, 20, 40))
    part = server.get("/runs/cat/samples").text
    assert 'aria-valuetext="step 40"' in part
    assert part.index("/samples/0/0/0?v=") < part.index("/samples/40/0/0?v=")
    images = server.get("/runs/cat/samples/images?at=1").text
    assert "/samples/20/0/0?v=" in images
    assert "/samples/40/" not in images
    write_grid(folder, 60, ("a photo of a sks cat",), 64)
    assert 'aria-valuetext="step 60"' in server.get("/runs/cat/samples?at=2&last=2").text  # it follows
    assert 'aria-valuetext="step 20"' in server.get("/runs/cat/samples?at=1&last=2").text


def test_a_grid_that_is_written_again_has_other_addresses(server):
    folder = new_run(server, samples=(0,))
    before = re.findall(r"samples/0/0/0\?v=(\d+)", server.get("/runs/cat/samples").text)
    write_grid(folder, 0, ("another",), 64)
    after = re.findall(r"samples/0/0/0\?v=(\d+)", server.get("/runs/cat/samples").text)
    assert before[0] != after[0]


# Own prompts of a run that does not train


def test_a_checkpoint_is_sampled_by_a_job_whose_images_are_shown(server):
    folder = new_run(server, logged=25)
    form = {"prompt": "--out /tmp </script> a cat", "seed": 7, "num": 2, "step": 40}
    assert server.post("/runs/cat/sample-requests", form).headers["hx-trigger"] == "changed-samples"
    [job] = [path.stem for path in (folder / "jobs").glob("sample-*.json")]
    id = job.removeprefix("sample-")
    argv = json.loads((folder / "jobs" / f"{job}.json").read_text())["argv"]
    assert argv[2:] == ["--prompt=--out /tmp </script> a cat", "--seed=7", "--num=2", "--step=40",
                        f"--out={folder}/sample_requests/{id}"]  # fmt: skip
    part = server.get("/runs/cat/own").text
    assert "--out /tmp &lt;/script&gt; a cat" in part
    assert "waits for its turn" in part
    out = folder / "sample_requests" / id
    out.mkdir(parents=True)
    Image.fromarray(photo(1, 64)).save(out / "7-000.png")
    assert f"/runs/cat/own/{id}/0?v=" in server.get("/runs/cat/own").text
    assert image_of(server.get(f"/runs/cat/own/{id}/0").body).tobytes() == photo(1, 64).tobytes()
    assert server.get(f"/runs/cat/own/{id}/1").status == 404
    assert server.post(f"/runs/cat/own/{id}/remove").status == 204
    assert not out.exists()
    assert "a cat" not in server.get("/runs/cat/own").text


@pytest.mark.parametrize("changed", [
    {"prompt": "  "}, {"prompt": "x" * 10_001}, {"seed": "-1"}, {"seed": "9" * 40}, {"num": "0"}, {"num": "17"},
    {"num": "1.5"}, {"step": "39"}, {"step": "../40"},
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused(server, changed):
    folder = new_run(server)
    form = {"prompt": "a cat", "seed": 0, "num": 1, "step": ""} | changed
    assert server.post("/runs/cat/sample-requests", form).status == 422
    assert not (folder / "jobs").exists()


# What an attacker, a damaged file or a lost folder brings


@pytest.mark.parametrize("path", [
    "samples/%s/0/0", "samples/20/%s/0", "samples/20/0/%s", "thumbnails/%s", "own/%s/0", "own/1/%s",
])  # fmt: skip
@pytest.mark.parametrize("value", ["-1", "1e9", "x", "9" * 30, "99", "..", "%2e%2e", "%00", "..%2f..%2fx", "٣"])
def test_addresses_of_images_that_lead_nowhere_find_nothing(server, path, value):
    new_run(server)
    from urllib.parse import quote

    escaped = quote(value, safe="%.")
    assert server.get(f"/runs/cat/{path % escaped}").status == 404


@pytest.mark.parametrize("query", ["at=-1", "at=x", "at=" + "9" * 40, "at=99", "last=x", "scale=<b>", "seen=%00"])
def test_any_query_shows_something(server, query):
    new_run(server)
    for part in (*PARTS, "samples/images"):
        assert server.get(f"/runs/cat/{part}?{query}").status == 200


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".jaxbooth-ui", "..%2fcat", "nothing", "%00"])
def test_runs_outside_of_the_root_are_not_there(server, name):
    for part in ("", "/state", "/log", "/contact-sheet"):
        assert server.get(f"/runs/{name}{part}").status in (404, 303)


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
