"""The page of a new run, through the server: the contact sheet, what is created, and what no parameter leads to."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from jaxbooth.config.load import load_config
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.images import load_image
from jaxbooth.storage.lock import locked
from jaxbooth.ui.job import TRAIN, JobFiles
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, ui_server

PROMPT = '</script><script>alert(1)</script> sks "dog"'


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server with two photos of a dog, one of them small; its queue starts nothing: another process trains there."""
    make_photos(tmp_path / "photos" / "dog")
    made_up_run(tmp_path / "elsewhere")
    with locked(tmp_path / "elsewhere", on_loss=pytest.fail), ui_server(tmp_path) as running:
        yield running


def make_photos(folder: Path) -> None:
    """Writes two photos of noise."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "wide.png")
    Image.fromarray(pixels[:40, :40]).save(folder / "small.png")


def form(**fields: str) -> dict[str, str]:
    """Returns a form that a run can be made of."""
    return {"base": "config:demo", "photos": "set:dog", "noun": "dog"} | fields


def tiles(sheet: str) -> list[str]:
    """Returns the addresses of the images on a contact sheet."""
    return [unescape(address) for address in re.findall(r'<img src="([^"]+)"', sheet)]


def test_the_contact_sheet_shows_what_a_run_would_train_on(server):
    sheet = server.post("/new/sheet", form()).text
    assert "2 photos at 64 pixels" in sheet
    assert "too small: enlarged 1.6 times" in sheet
    shown = Image.open(io.BytesIO(server.get(tiles(sheet)[1]).body))
    photo = load_image(server.roots.photos / "dog" / "wide.png")
    assert (np.asarray(shown) == CropSpec(64, 64).augment(photo, 1).pixels[0]).all()


def test_crops_mirrors_and_shapes_follow_the_form(server):
    sheet = server.post("/new/sheet", form(**{"k.data.crop": "random", "k.data.flip": "true", "k.seed": "3"})).text
    addresses = [address for address in tiles(sheet) if "wide.png" in address]
    assert len(addresses) == 8
    photo = load_image(server.roots.photos / "dog" / "wide.png")
    expected = CropSpec(64, 64, crops=4, flip=True, seed=3).augment(photo, 1).pixels
    for address, pixels in zip(addresses, expected, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(server.get(address).body))) == pixels).all()
    sheet = server.post("/new/sheet", form(**{"k.data.buckets": "true"})).text
    assert "trained at 80 × 48" in sheet


def test_the_crops_that_are_shown_of_many_are_the_first_ones():
    photo = load_image(Path(__file__).parents[1] / "jaxbooth" / "assets" / "fluent-cat" / "crying.png")
    all_crops = CropSpec(48, 64, crops=9, seed=5).augment(photo, 2).pixels
    assert (CropSpec(48, 64, crops=4, seed=5).augment(photo, 2).pixels == all_crops[:4]).all()


def test_captions_can_be_edited_where_photos_were_uploaded(server):
    assert server.post("/new/photos/dog/caption", {"photo": "wide.png", "caption": "a dog </textarea>"}).status == 204
    sheet = server.post("/new/sheet", form()).text
    assert "a dog &lt;/textarea&gt;</textarea>" in sheet
    assert server.post("/new/photos/dog/caption", {"photo": "../x", "caption": "a"}).status == 404


def test_another_folder_is_shown_and_left_alone(tmp_path):
    make_photos(tmp_path / "mine" / "cat")
    (tmp_path / "mine" / "cat" / "wide.txt").write_text("a cat of mine")
    with ui_server(tmp_path / "runs", (tmp_path / "mine",)) as server:
        assert str(tmp_path / "mine" / "cat") in server.get("/new").text
        chosen = form(photos="folder", folder=str(tmp_path / "mine" / "cat"))
        sheet = server.post("/new/sheet", chosen).text
        assert "a cat of mine" in sheet
        assert "<textarea" not in sheet
        assert "/remove" not in sheet
        assert server.get(tiles(sheet)[0]).status == 200


@pytest.mark.parametrize(
    "folder", ["/etc", "..", "photos/../..", "link", "missing", "photos/dog/wide.png", ".jaxbooth-ui"]
)
def test_a_folder_outside_is_refused_in_a_sentence(server, tmp_path_factory, folder):
    (server.roots.runs / "link").symlink_to(tmp_path_factory.mktemp("outside"))
    assert "<img" not in server.post("/new/sheet", form(photos="folder", folder=folder)).text
    outcome = server.post("/new/check", form(photos="folder", folder=folder)).text
    assert f"{folder} is not a folder in {server.roots.runs}" in outcome
    assert 'data-keys="data.instance_dir"' in outcome
    assert server.post("/new/create", form(photos="folder", folder=folder)).status == 422


@pytest.mark.parametrize("name", ["photo.png", "wide.txt"])
def test_a_link_out_of_the_roots_is_not_read(server, tmp_path_factory, name):
    secret = tmp_path_factory.mktemp("outside") / "secret"
    secret.write_text("a secret")
    (server.roots.photos / "dog" / name).symlink_to(secret)
    sheet = server.post("/new/sheet", form()).text
    assert f"{name} in {server.roots.photos / 'dog'} is a link" in sheet
    assert "a secret" not in sheet


@pytest.mark.parametrize(
    "photo", ["/etc/passwd", "../../etc/passwd", "photos/link.png", "elsewhere/config.yaml", "", "a\0"]
)
def test_a_tile_shows_photos_of_the_roots_alone(server, tmp_path_factory, photo):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("RGB", (64, 64)).save(outside)
    (server.roots.photos / "link.png").symlink_to(outside)
    query = f"index=0&height=64&width=64&crops=0&flip=false&seed=0&masked=false&number=0&photo={quote(photo)}"
    assert server.get(f"/new/tile?{query}").status in (404, 422)


@pytest.mark.parametrize(
    "change", ["height=9000", "crops=100000", "number=5", "number=-1", "height=x", "crops=-1", "extra=1"]
)
def test_a_tile_of_unlikely_numbers_is_refused(server, change):
    photo = server.roots.photos / "dog" / "wide.png"
    address = f"/new/tile?index=0&height=64&width=64&crops=0&flip=false&seed=0&masked=false&number=0&photo={photo}"
    assert server.get(address).status == 200
    assert server.get(f"{address}&{change}").status in (404, 422)


def test_a_run_is_created_with_absolute_paths_and_waits_in_the_queue(server):
    answer = server.post("/new/create", form(start="1", name="my dog", **{"k.data.instance_prompt": PROMPT}))
    assert answer.status == 204
    assert answer.headers["hx-redirect"] == "/runs/my%20dog"
    folder = server.roots.runs / "my dog"
    config = load_config(folder / "config.yaml")
    assert config.data.instance_dir == server.roots.photos / "dog"
    assert config.run_dir == str(folder)
    assert config.data.instance_prompt == PROMPT
    assert JobFiles.of(folder, TRAIN).read().argv == ("train", str(folder / "config.yaml"))
    assert PROMPT not in server.get("/new?from=my%20dog").text
    assert PROMPT in unescape(server.get("/new?from=my%20dog").text)


def test_a_run_can_be_saved_without_starting(server):
    assert server.post("/new/create", form(name="later")).status == 204
    assert JobFiles.of(server.roots.runs / "later", TRAIN).read() is None


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("data.class_dir", "--data.class-dir"),
        ("data.validation_dir", "--data.validation-dir"),
        ("vae", "--vae"),
        ("lora.init", "--lora.init"),
    ],
)
def test_no_key_leads_a_run_out_of_the_roots(server, tmp_path_factory, key, flag):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(b"")
    (outside / "secret.txt").write_text("a secret")
    (server.roots.runs / "link").symlink_to(outside)
    for path in (outside, server.roots.runs / "link"):
        fields = form(base="config:sd15-lora", **{f"k.{key}": str(path)})
        answer = server.post("/new/create", fields)
        assert answer.status == 422
        assert f"{flag} {path} lies outside of the folders that this page may use" in answer.text
        assert "a secret" not in server.post("/new/sheet", fields).text


def test_two_tabs_and_a_double_click_make_one_run(server):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post("/new/create", form(suggested="dog", start="1")), range(8)))
    assert sorted(answer.status for answer in answers) == [204] + 7 * [422]
    refused = next(answer.text for answer in answers if answer.status == 422)
    assert f"dog exists already in {server.roots.runs}; choose another name for the run." in refused
    assert sorted(path.name for path in server.roots.runs.iterdir() if path.name[0] != ".") == [
        "dog",
        "elsewhere",
        "photos",
    ]
    assert [path.name for path in server.roots.server.glob("new-*")] == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"photos": ""}, "Still missing: photos."),
        ({"noun": ""}, "Still missing: what they show."),
        ({"name": "../x"}, "&#39;../x&#39; cannot be the name of a run"),
        ({"name": "photos"}, "photos is taken"),
        ({"name": "elsewhere"}, "elsewhere exists already"),
        ({"k.train.steps": "0"}, "train.steps = &#39;0&#39; is not valid"),
        ({"k.data.hold_out": "9"}, "--data.hold-out 9 leaves no photo"),
    ],
)
def test_what_cannot_be_created_is_told_in_one_sentence(server, fields, sentence):
    answer = server.post("/new/create", form(base="config:sd15-lora") | fields)
    assert answer.status == 422
    assert sentence in answer.text


def test_an_empty_folder_of_photos_makes_no_run(server):
    (server.roots.photos / "empty").mkdir()
    assert "0 photos" in server.get("/new").text
    assert server.post("/new/create", form(photos="set:empty")).status == 422


@pytest.mark.parametrize("base", ["config:../../etc/passwd", "config:missing", "run:../x", "run:missing", "model:/etc"])
def test_a_base_that_is_none_of_the_choices_is_not_found(server, base):
    assert server.post("/new/check", form(base=base)).status == 404


def test_a_new_run_takes_the_settings_of_another_one(server):
    page = server.get("/new?from=elsewhere").text
    assert "as the run elsewhere" in page
    assert 'placeholder="elsewhere-2"' in page
    assert server.get("/new?from=missing").status == 404
    assert server.get("/new?from=../x").status == 404
    outcome = re.sub("<[^>]+>", "", server.post("/new/check", form(base="run:elsewhere", name="next")).text)
    assert f"jaxbooth train {server.roots.runs}/elsewhere/config.yaml --run-dir {server.roots.runs}/next" in outcome


def test_another_base_keeps_what_was_changed_by_hand(server):
    changed = form(base="config:demo", base_was="config:sd15-lora", trained="lora", **{"k.train.steps": "1000"})
    page = server.post("/new/form", changed | {"k.train.batch_size": "7", "k.lora.rank": "16"}).text
    assert re.search(r'name="k.train.batch_size" value="7"', page)
    assert re.search(r'name="k.train.steps" value="250"', page)
    assert re.search(r'value="whole" checked', page)


def test_local_models_are_offered(tmp_path):
    (tmp_path / "models" / "mine" / "unet").mkdir(parents=True)
    for name in ("mine/model_index.json", "mine/unet/part.safetensors", "one.safetensors"):
        (tmp_path / "models" / name).write_text("{}")
    with ui_server(tmp_path / "runs", (tmp_path / "models",)) as server:
        page = server.get("/new").text
    assert f'value="model:{tmp_path}/models/mine"' in page
    assert f'value="model:{tmp_path}/models/one.safetensors"' in page
    assert "part.safetensors" not in page


def test_the_page_of_a_run_leads_to_a_new_one_like_it(server):
    assert 'href="/new?from=elsewhere"' in server.get("/runs/elsewhere").text
