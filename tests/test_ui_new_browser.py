"""The page of a new run in a real browser: from photos to a run that waits, on a desktop and on a phone."""

from pathlib import Path

import pytest

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.config.load import load_config
from jaxbooth.storage.lock import locked
from jaxbooth.ui.job import TRAIN, JobFiles
from tests.browser import Browser, find_browser
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, ui_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")]
ODD = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server whose queue starts nothing: another process trains there."""
    made_up_run(tmp_path / "elsewhere")
    with locked(tmp_path / "elsewhere", on_loss=pytest.fail), ui_server(tmp_path) as running:
        yield running


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Photos to upload, one of them with a name that is no name."""
    odd = tmp_path / "to upload" / ODD
    odd.parent.mkdir()
    odd.write_bytes((DEMO_SUBJECT / "crying.png").read_bytes())
    return [odd, DEMO_SUBJECT / "cat-face.png", DEMO_SUBJECT / "grinning.png"]


def open_page(tab: Browser, server: UiServer, width: int = 1280) -> None:
    """Opens the page as a new visitor does."""
    tab.visit(server.address, width)
    tab.visit(f"http://127.0.0.1:{server.port}/new", width)
    tab.run("sessionStorage.clear()")
    tab.wait("!!document.querySelector('#result')")


def choose(tab: Browser, selector: str, value: str) -> None:
    """Chooses an option."""
    field = f"document.querySelector('{selector}')"
    tab.run(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('change', {{bubbles: true}}))")


@pytest.mark.parametrize("width", [1280, 390])
def test_from_photos_to_a_run_that_waits(tab, server, photos, width):
    open_page(tab, server, width)
    choose(tab, "#base", "config:demo")
    tab.wait("document.querySelector('#k-train-steps').value === '250'")
    tab.fill("#noun", "cat")
    tab.choose_files("#files", photos)
    tab.wait("document.querySelectorAll('.photo img').length === 3")
    assert tab.run("document.querySelectorAll('.mark').length") == 1  # two of them are equal
    tab.wait("document.querySelector('#command')?.textContent.includes('a photo of sks cat')")
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.wait("document.querySelector('#suggested').value === 'cat'")
    assert tab.problems == []
    tab.click(".create .primary")
    tab.wait("location.pathname === '/runs/cat'")
    folder = server.roots.runs / "cat"
    config = load_config(folder / "config.yaml")
    assert sorted(path.name for path in config.data.instance_dir.iterdir()) == [ODD, "cat-face.png", "grinning.png"]
    assert config.data.class_prompt == "a photo of a cat"
    assert JobFiles.of(folder, TRAIN).state() == "queued"


def test_settings_are_found_checked_and_kept_over_a_reload(tab, server):
    open_page(tab, server)
    tab.click("#drawer > summary")
    tab.fill("#search", "--train.ema")
    tab.wait("document.querySelector('#found').textContent === '1 found'")
    tab.fill("#k-train-ema_decay", "2")
    tab.wait("document.querySelector('[data-key=\"train.ema_decay\"] .note').textContent.includes('is not valid')")
    tab.fill("#k-train-ema_decay", "0.999")
    tab.wait("!document.querySelector('#sentence')")
    assert tab.run("document.querySelector('#changed-count').textContent") == "1 changed"
    tab.navigate(f"http://127.0.0.1:{server.port}/new")
    tab.wait("document.querySelector('#k-train-ema_decay').value === '0.999'")
    tab.click("#drawer > summary")
    tab.click("[data-key='train.ema_decay'] .reset")
    tab.wait("document.querySelector('#changed-count').textContent === ''")
    assert tab.problems == []


def test_a_photo_that_is_refused_says_why(tab, server, tmp_path):
    open_page(tab, server)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(65 * 2**20)
    tab.choose_files("#files", [tmp_path / "broken.jpg", tmp_path / "huge.png"])
    tab.wait("document.querySelectorAll('#uploads .problem').length === 2")
    text = tab.run("document.querySelector('#uploads').textContent")
    assert "huge.png has 65 MB; at most 64 MB can be sent." in text
    assert "broken.jpg is no image of a known format" in text


def test_the_plan_says_whether_it_fits(tab, server):
    open_page(tab, server)
    choose(tab, "#base", "config:demo")
    tab.wait("document.querySelector('#k-train-steps').value === '250'")
    tab.fill("#topology", "rtx4090:1")
    for _ in range(6):  # a process that starts JAX takes its time on a busy machine
        try:
            tab.wait("document.querySelector('.verdict')?.textContent === 'Yes, it fits.'")
            break
        except AssertionError:
            continue
    text = tab.run("document.querySelector('#plan').textContent")
    assert "rtx4090:1" in text
    assert "for 250 steps" in text
