"""A report in a real browser: no error, keyboard and mouse, narrow screens, both themes, paper."""

from pathlib import Path

import pytest

from jaxbooth.report.report import make_report
from tests.browser import Browser, find_browser
from tests.made_up_runs import evaluated, made_up_run

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
DRAWN = "document.querySelectorAll('.canvas svg').length === document.querySelectorAll('.canvas').length"
CURVES = "[...document.querySelectorAll('.canvas .mark-line path')].map(path => path.getAttribute('d')).join()"
SOURCES = "[...document.querySelectorAll('[data-row] img')].map(image => image.src)"
FOCUSED = """(() => {
  const at = document.activeElement;
  return at.id || at.ariaLabel || at.value || at.textContent.trim();
})()"""
FOCUSABLE = """[...document.querySelectorAll('a, button, input, summary, [tabindex="0"]')].filter((each) =>
  !each.disabled && each.checkVisibility() && !(each.type === 'radio' && !each.checked)).length"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report of two runs, whose prompts are long words."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = (f"a photo of a {'s' * 80} cat", "a photo of a cat")
    cat = evaluated(made_up_run(folder / "cat", prompts=prompts), models=("base", "cat-000040", "other-000040"))
    return make_report([cat, made_up_run(folder / "dog", prompts=prompts, samples=(0, 40), lora={"rank": 4})])


@pytest.fixture
def opened(tab, page) -> Browser:
    """The tab, at the page with its charts drawn."""
    tab.open(page)
    tab.wait(DRAWN)
    yield tab
    assert tab.problems == []


def test_the_slider_moves_the_images_of_all_runs(opened):
    last = opened.run(SOURCES)
    opened.run("document.getElementById('step').focus()")
    opened.press("ArrowLeft")
    middle = opened.run(SOURCES)
    assert opened.run("document.getElementById('shown').textContent") == "20"
    assert opened.run("document.getElementById('step').ariaValueText") == "step 20"
    nearest = opened.run("[...document.querySelectorAll('.at')].map(each => each.textContent)")
    assert nearest == ["step 20", "step 0"] * 2
    assert all(before != after for before, after in zip(last, middle, strict=True))
    opened.press("End")
    assert opened.run(SOURCES) == last


def test_the_buttons_beside_the_slider_stop_at_its_ends(opened):
    assert opened.run("document.getElementById('later').disabled")
    opened.run("document.getElementById('earlier').focus()")
    opened.press(" ", count=2)
    assert opened.run("document.getElementById('shown').textContent") == "0"
    assert opened.run("document.getElementById('earlier').disabled")


def test_the_scale_can_be_switched_by_keyboard(opened):
    linear = opened.run(CURVES)
    opened.run("document.querySelector('input[name=scale]').focus()")
    opened.press("ArrowRight")
    opened.wait(f"{CURVES} !== {linear!r}")
    opened.press("ArrowLeft")
    opened.wait(f"{CURVES} === {linear!r}")


def test_a_run_can_be_hidden(opened):
    both = opened.run(CURVES)
    opened.run("document.querySelector('input[value=dog]').focus()")
    opened.press(" ")
    opened.wait(f"{CURVES} !== {both!r}")
    assert "dog" not in opened.run("document.querySelector('.readout').textContent")


def test_a_chart_is_read_with_arrow_keys(opened):
    opened.run("document.querySelector('.plot').focus()")
    opened.press("Home")
    opened.press("ArrowRight")
    said = opened.run("document.querySelector('.plot').ariaValueText")
    assert said.startswith("step 2, cat 0.")
    assert ", dog 0." in said


def test_a_chart_is_read_with_the_mouse(opened):
    opened.run("document.querySelector('.plot').scrollIntoView({behavior: 'instant'})")
    box = opened.run("document.querySelector('.plot').getBoundingClientRect().toJSON()")
    opened.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.wait("!document.querySelector('.readout').textContent.startsWith('step 40')")
    step = int(opened.run("document.querySelector('.readout').textContent.split(/\\s/)[1]"))
    assert 15 < step < 27


def test_tab_reaches_every_control(opened):
    wanted, reached = opened.run(FOCUSABLE), []
    for _ in range(wanted):
        opened.press("Tab")
        reached.append(opened.run(FOCUSED))
    assert reached[0] == "Skip to the content"
    assert {"step", "earlier", "linear", "cat", "dog", "Contact sheet", "Evaluation of cat"} <= set(reached)
    opened.press("Tab")
    assert opened.run("document.activeElement === document.body || document.activeElement.className === 'skip'")


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(tab, page, width, dark):
    tab.open(page, width=width, dark=dark)
    tab.wait(DRAWN)
    tab.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.problems == []


TOPS = "[...document.querySelectorAll('.prompts .image-row')].map(each => each.getBoundingClientRect().top)"


def test_the_last_samples_come_first_and_prompts_stand_side_by_side_where_there_is_room(opened):
    assert opened.run("document.querySelector('main h2').id") == "samples"
    opened.resize(1400, 900)
    wide = opened.run(TOPS)
    assert wide[0] == wide[2]  # the first run's images of both prompts; the second run's are below them
    assert wide[1] == wide[3] > wide[0]
    opened.resize(360, 800)
    narrow = opened.run(TOPS)
    assert narrow == sorted(narrow)
    assert len(set(narrow)) == 4


def test_on_a_phone_the_samples_begin_on_the_first_screen(tab, page):
    tab.open(page, width=360)
    assert tab.run("document.getElementById('samples').getBoundingClientRect().top") < 800


def test_charts_follow_the_window(opened):
    wide = opened.run("document.querySelector('.canvas svg').clientWidth")
    opened.resize(360, 800)
    opened.wait(f"document.querySelector('.canvas svg').clientWidth < {wide - 20}")
    assert opened.run("document.documentElement.scrollWidth") == 360


def test_each_theme_has_its_own_colours_and_paper_is_light(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(ground)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    opened.send("Emulation.setEmulatedMedia", features=[scheme])
    assert opened.run(ground) != light
    opened.send("Emulation.setEmulatedMedia", media="print", features=[scheme])
    assert opened.run(ground) == light
    opened.send("Emulation.setEmulatedMedia", media="", features=[])


def test_without_scripts_the_last_images_and_all_tables_are_there(tab, page):
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        assert tab.run("document.querySelectorAll('[data-row] img[src^=data]').length") == 8
        assert not tab.run("document.querySelector('.slider').checkVisibility()")
        assert tab.run("document.querySelector('noscript').checkVisibility()")
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)


def test_every_control_and_image_has_a_name(opened):
    nodes = opened.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"slider", "button", "radio", "checkbox", "image", "link", "table", "region"} - {"table"}
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if node.get("role", {}).get("value") in roles and not node["ignored"] and not node["name"]["value"]
    ]
    assert unnamed == []
