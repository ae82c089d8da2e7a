"""The page of one run in a real browser: by keyboard and mouse, on a desk and on a phone, while the run goes on."""

import json
import shutil
from pathlib import Path

import pytest

from jaxbooth.ui.job import TRAIN, JobFiles
from tests.browser import Browser, find_browser
from tests.made_up_runs import made_up_run, write_grid
from tests.ui_server import UiServer, idle_ui_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs Chromium")]


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of a new root, whose queue starts nothing."""
    with idle_ui_server(tmp_path) as running:
        yield running


def open_run(tab: Browser, server: UiServer, width: int = 1280, dark: bool = False, **settings: object) -> Path:
    """Makes a run and opens its page."""
    folder = made_up_run(server.roots.runs / "cat", **{"samples": (0, 20, 40)} | settings)
    tab.navigate("about:blank")  # the page before this one asks its own server
    tab.visit(server.address, width, dark=dark)
    tab.navigate(f"http://127.0.0.1:{server.port}/runs/cat")
    tab.wait("document.querySelector('.results')")
    return folder


def test_the_slider_works_by_keyboard_and_by_its_buttons(tab, server):
    open_run(tab, server)
    last_image = "[...document.querySelectorAll('#sample-images img')].at(-1).src"
    tab.run("document.getElementById('at').focus()")
    tab.press("ArrowLeft")
    tab.wait(f"{last_image}.includes('/samples/20/')")
    assert tab.run("document.getElementById('at').getAttribute('aria-valuetext')") == "step 20"
    assert tab.run("document.activeElement.id") == "at"
    tab.click("button[data-by='1']")
    tab.wait(f"{last_image}.includes('/samples/40/')")
    assert tab.run("document.getElementById('shown-step').textContent") == "40"
    assert tab.problems == []


def test_curves_and_samples_grow_while_tables_stay_open(tab, server):
    folder = open_run(tab, server, logged=20)
    tab.click("#table-loss summary")
    tab.run("window.before = document.querySelector('#curves .line').getAttribute('d')")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(21, 31)))
    tab.wait("document.querySelector('#progress').textContent.includes('step 30 of 40')")
    tab.wait("document.querySelector('#curves .line').getAttribute('d') !== window.before")
    assert tab.run("document.getElementById('table-loss').open")
    write_grid(folder, 60, ("a photo of a sks cat",), 64)
    tab.wait("document.getElementById('shown-step').textContent === '60'")
    assert tab.problems == []


def test_the_scale_is_switched_and_stays(tab, server):
    folder = open_run(tab, server, logged=20)
    labels = "[...document.querySelectorAll('.chart.large .y-axis text')].map(text => text.textContent.trim()).join()"
    logarithmic = tab.run(labels)
    tab.run("document.querySelector('[value=linear]').click()")
    tab.wait(f"{labels} !== {json.dumps(logarithmic)}")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 0.3}\n')
    tab.wait("document.querySelector('#progress').textContent.includes('step 21 of 40')")
    assert tab.run("document.querySelector('.chart.large .y-axis').textContent.includes('0.1')")
    assert tab.run(labels) != logarithmic
    assert tab.problems == []


def test_a_chart_tells_the_value_under_the_pointer(tab, server):
    open_run(tab, server)
    tab.run("document.querySelector('.chart').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = tab.run("(({right, top}) => [right, top])(document.querySelector('.area').getBoundingClientRect())")
    tab.move(box[0] - 2, box[1] + 80)
    tab.wait("document.querySelector('.reading').textContent.endsWith('at step 40')")
    value = float(tab.run("document.querySelector('.reading').textContent").split()[0])
    table = tab.run("document.querySelector('.chart tbody tr:last-child td').textContent")
    assert value == pytest.approx(float(table), rel=0.01)
    tab.move(box[0] - 2, 5)
    tab.wait("!document.querySelector('.area.read')")
    assert tab.problems == []


def test_an_own_prompt_is_asked_for_and_taken_back(tab, server):
    folder = open_run(tab, server)
    tab.fill("#prompt", "a </script> cat")
    tab.click("#ask button")
    tab.wait("document.querySelector('#own').textContent.includes('a </script> cat')")
    assert len(list((folder / "jobs").glob("sample-*.json"))) == 1
    tab.click("#own button")
    tab.wait("!document.querySelector('#own').textContent.includes('script')")
    assert tab.problems == []


def test_a_refusal_is_told_and_the_form_keeps_what_was_typed(tab, server):
    open_run(tab, server)
    shutil.rmtree(server.roots.runs / "cat" / "checkpoints")
    tab.fill("#prompt", "a cat at night")
    tab.click("#ask button")
    tab.wait("document.querySelector('#notices').textContent.includes('has no checkpoint yet')")
    assert tab.run("document.getElementById('prompt').value") == "a cat at night"


def test_the_log_follows_its_end_until_one_scrolls_up(tab, server):
    folder = open_run(tab, server)
    files = JobFiles.of(folder, TRAIN)
    files.enqueue(["train", "x"])
    log = files.log
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    tab.wait("document.querySelector('.log')?.textContent.includes('line 99')")
    tab.run("document.querySelector('.log').scrollTop = 0")
    with log.open("a") as file:
        file.write("line 100\n")
    tab.wait("document.querySelector('.log').textContent.includes('line 100')")
    assert tab.run("document.querySelector('.log').scrollTop") == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_is_wider_than_the_window_and_nothing_complains(tab, server, width, dark):
    open_run(tab, server, width, dark, side=256, prompts=("a photo of a sks cat " + "x" * 200, "a photo of a cat"))
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("[...document.querySelectorAll('input, select, textarea')].filter(f => !f.labels?.length"
                   " && f.type !== 'hidden').length") == 0  # fmt: skip
    assert tab.problems == []
