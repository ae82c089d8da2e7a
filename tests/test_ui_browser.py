"""`jaxbooth ui` in a real browser: from photos to a LoRA file on the demo model, on a desktop and on a phone."""

import base64
import json
import time
from pathlib import Path

import pytest

from jaxbooth.assets import DEMO_SUBJECT
from tests.browser import Browser, find_browser
from tests.commands import environment
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, ui_server

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
PHOTOS = sorted(DEMO_SUBJECT.glob("*.png"))
SHORT = {
    "train.steps": "4", "data.num_class_images": "2", "prior.steps": "2", "validation.steps": "2",
    "validation.images_per_prompt": "1", "train.batch_size": "1",
}  # fmt: skip
TRAINING_SECONDS = 600
LOAD_SECONDS = 180  # of a part of a page while other tests keep the cores busy
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
WIDTHS = pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.slow)])


@pytest.fixture
def server(tmp_path, monkeypatch) -> UiServer:
    """A server of a new root."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    with ui_server(tmp_path / "runs") as running:
        yield running


def enter(tab: Browser, key: str, text: str) -> None:
    """Types the value of a key, wherever the form has it."""
    tab.fill(f"#k-{key.replace('.', '-')}", text)


def prepare_run(tab: Browser, name: str) -> None:
    """Fills the form of a new run."""
    tab.click('nav a[href="/new"]')
    tab.wait("!!document.querySelector('#result')", LOAD_SECONDS)
    tab.choose_files("#files", PHOTOS)
    tab.wait(f"document.querySelectorAll('#sheet img').length === {len(PHOTOS)}", LOAD_SECONDS)
    tab.fill("#noun", "cat")
    tab.run("document.querySelector('#base').value = 'config:demo'")
    tab.run("document.querySelector('#base').dispatchEvent(new Event('change', {bubbles: true}))")
    tab.wait("document.querySelector('#new-page').dataset.page === 'config:demo'", LOAD_SECONDS)
    tab.click("input[name=trained][value=lora]")
    tab.fill("#name", name)
    tab.click("#drawer > summary")
    tab.wait("document.querySelector('#drawer').open")
    for key, value in SHORT.items():
        enter(tab, key, value)
    tab.wait("document.querySelector('#command')?.textContent.includes('--train.steps 4')", LOAD_SECONDS)


def make_and_download(tab: Browser, format: str) -> bytes:
    """Lets the page export a run, and returns the first bytes of the download."""
    make = f"button[hx-vals*='\"{format}\"']"
    while not tab.run("!!document.querySelector('.exports .state')"):  # a part that is shown anew loses a click
        if tab.run(f"!!document.querySelector({json.dumps(make)})"):
            tab.click(make)
        time.sleep(1)
    link = f"a[download][href*='/exports/{format}/']"
    tab.wait(f'!!document.querySelector("{link}")', TRAINING_SECONDS)
    script = f'fetch(document.querySelector("{link}").href).then((answer) => answer.arrayBuffer())'
    return bytes(tab.run(f"{script}.then((content) => [...new Uint8Array(content).slice(0, 2000)])"))


@WIDTHS
def test_photos_become_a_lora_file(tab, server, width):
    tab.visit(server.address, width)
    prepare_run(tab, "my cat")
    tab.click(".create .primary")
    tab.wait("location.pathname === '/runs/my%20cat'", LOAD_SECONDS)
    tab.wait("!!document.querySelector('.state.done')", TRAINING_SECONDS)
    assert tab.run("document.documentElement.scrollWidth") <= width
    content = make_and_download(tab, "lora")
    assert content[:2] == b"PK"  # a zip of the two files of a LoRA
    assert b"my cat/my cat" in content
    assert b"lora_down.weight" in content
    assert tab.problems == []


def test_photos_that_are_chosen_before_the_script_of_the_page_runs_are_taken(tab, server):
    content = base64.b64encode(PHOTOS[0].read_bytes()).decode()
    early = f"""document.addEventListener('readystatechange', () => {{
        const field = document.getElementById('files'), chosen = new DataTransfer();
        if (!field || document.readyState !== 'interactive') return;
        const content = Uint8Array.from(atob('{content}'), (each) => each.charCodeAt(0));
        chosen.items.add(new File([content], 'early.png'));
        field.files = chosen.files;
    }})"""
    script = tab.send("Page.addScriptToEvaluateOnNewDocument", source=early)
    tab.visit(server.address)
    tab.visit(f"http://127.0.0.1:{server.port}/new")
    tab.wait("document.querySelectorAll('#sheet img').length === 1", LOAD_SECONDS)
    tab.send("Page.removeScriptToEvaluateOnNewDocument", **script)
    assert tab.problems == []


def test_a_report_of_two_runs_opens_in_its_sandbox(tab, server):
    for name in ("dog", "cat"):
        made_up_run(server.roots.runs / name)
    tab.visit(server.address)
    tab.click('nav a[href="/compare"]')
    tab.click("input[value=dog]")
    tab.click("input[value=cat]")
    tab.click("form .primary")
    tab.wait("!!document.querySelector('iframe.report')")
    frames = tab.send("Page.getFrameTree")["frameTree"]["childFrames"]
    assert [frame["frame"]["securityOrigin"] for frame in frames] == ["://"]  # none: it can reach nothing
    assert tab.problems == []


@pytest.mark.parametrize("path", ["/", "/new", "/compare", "/runs/dog"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_and_nothing_is_wider_than_a_phone(tab, server, path, dark):
    made_up_run(server.roots.runs / "dog", logged=25, prompts=("a photo of a " + "very " * 30 + "long cat", "x" * 90))
    tab.visit(server.address, 390, dark=dark)
    tab.visit(f"http://127.0.0.1:{server.port}{path}", 390, dark=dark)
    tab.wait("document.querySelector('.htmx-request:not(#plan)') === null")  # the plan may take its time
    assert tab.run("document.documentElement.scrollWidth") <= 390
    assert json.loads(tab.run(CONTRAST)) == []
    assert tab.problems == []


def test_everything_has_a_name_and_can_be_reached_with_the_keyboard(tab, server):
    made_up_run(server.roots.runs / "dog", logged=25)
    for path in ("/", "/new", "/compare", "/runs/dog"):
        tab.visit(server.address)
        tab.visit(f"http://127.0.0.1:{server.port}{path}")
        nameless = """[...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea')]
            .filter((each) => each.checkVisibility() && !each.ariaHidden && !each.labels?.length && !each.ariaLabel)
            .filter((each) => !each.textContent.trim() && !each.querySelector('img[alt]:not([alt=""])'))
            .map((each) => each.outerHTML)"""
        assert tab.run(nameless) == []
        clickable = "[...document.querySelectorAll('[hx-post]')].filter((each) => !each.matches('button, form, select,"
        assert tab.run(f"{clickable} #sheet')).map((each) => each.outerHTML)") == []


def test_a_page_says_when_the_server_is_gone(tab, tmp_path):
    with ui_server(tmp_path / "runs") as server:
        tab.visit(server.address)
    tab.wait("document.getElementById('connection').textContent.includes('The server does not answer')")
