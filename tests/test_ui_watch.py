"""The page of one run in `jaxbooth ui`: its state, its samples, own prompts."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from jaxbooth.config.load import load_config
from jaxbooth.ui.job import TRAIN, JobFiles
from tests.made_up_runs import made_up_run, photo, write_grid
from tests.ui_server import UiServer, idle_ui_server

PARTS = ("state", "progress", "samples", "curves", "checkpoints", "own", "log")


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing."""
    with idle_ui_server(tmp_path) as running:
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
