"""The plan beside the form of a new run: asked in a process of its own, and only the newest question counts."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxbooth.storage.lock import locked
from jaxbooth.ui.planner import Devices, Planner, known_topologies, last_error
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, ui_server

PLAN = {"base": "config:demo", "noun": "cat", "tab": "a", "topology": "rtx4090:1"}
# A server that has shown everything of a new run; JAX in it would take the device that runs need.
WITHOUT_JAX = """
import sys
from pathlib import Path
from jax._src.xla_bridge import backends_are_initialized
from tests.ui_server import ui_server
with ui_server(Path(sys.argv[1])) as server:
    form = {"base": "config:demo", "noun": "cat", "k.data.crop": "random"}
    assert server.get("/new").status == 200
    assert "5 photos" in server.post("/new/sheet", form).text
    assert "jaxbooth train demo" in server.post("/new/check", form).text
    assert server.post("/new/create", form | {"name": "cat"}).status == 204
print(backends_are_initialized())
"""


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of an empty root."""
    with ui_server(tmp_path) as running:
        yield running


def test_the_server_never_starts_jax(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_while_a_run_trains_the_devices_are_left_alone(tmp_path):
    made_up_run(tmp_path / "elsewhere")
    with locked(tmp_path / "elsewhere", on_loss=pytest.fail), ui_server(tmp_path) as server:
        answer = server.post("/new/plan", PLAN | {"topology": ""})
    assert "A run is training, so this machine&#39;s devices are left alone; name some below." in answer.text


def test_settings_that_are_not_valid_are_not_planned(server):
    assert "Once the settings are valid" in server.post("/new/plan", PLAN | {"k.train.steps": "0"}).text


def test_a_run_that_has_a_set_of_gpus_is_planned_for_that(tmp_path):
    planner = Planner(tmp_path, ("0,1", "2,3"))
    devices = Devices("NVIDIA H100", 4, "gpu", "h100:4")
    assert planner._one_set(devices) == Devices("NVIDIA H100", 2, "gpu", "h100:2")
    assert Planner(tmp_path)._one_set(devices) == devices


def test_the_last_error_is_the_sentence():
    assert last_error("warning: a\nerror: it is so.\n  elapsed\n") == "it is so."
    assert last_error("Traceback\nValueError: x\n") == "ValueError: x"
    assert last_error("") == "The plan ended without an answer."


def test_devices_that_a_plan_knows_are_offered():
    known = known_topologies()
    assert {"h100:8", "rtx4090:1", "v5e:2x4"} <= set(known)
    assert len(known) == len(set(known))


@pytest.mark.slow
def test_a_plan_says_whether_a_run_fits_and_how_long_it_takes(server):
    text = server.post("/new/plan", PLAN).text
    assert "Yes, it fits." in text
    assert "for 250 steps" in text
    text = server.post("/new/plan", PLAN | {"base": "config:zimage-lora", "trained": "whole", "topology": "t4:1"}).text
    assert "No, it needs too much memory." in text
    assert "--lora.rank 16" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"topology": "rtx9999"}, "--topology rtx9999 is not known"),
        ({"topology": "</script>"}, "--topology &lt;/script&gt; is not known"),
        ({"k.data.resolution": "65"}, "--data.resolution 65 is not a multiple of 16, which this model needs; try 64."),
        ({"base": "other", "k.model": "owner/unknown"}, "The model is not on this machine yet."),
    ],
)
def test_why_there_is_no_plan_is_said_in_its_sentence(server, fields, sentence):
    assert sentence in server.post("/new/plan", PLAN | fields).text


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["rtx4090:1", ""])  # without one, the devices are looked for first
def test_a_newer_question_ends_the_former_one(server, topology):
    with ThreadPoolExecutor(2) as pool:
        former = pool.submit(server.post, "/new/plan", PLAN | {"base": "config:sd15", "topology": topology})
        time.sleep(1.5)
        newer = pool.submit(server.post, "/new/plan", PLAN)
        assert former.result().status == 204
        assert "Yes, it fits." in newer.result().text
    assert not list(server.roots.server.glob("plan-*"))
