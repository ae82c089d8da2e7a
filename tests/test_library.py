"""jaxbooth as a library: what it offers, overrides, and the examples of docs/library.md."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxbooth
from jaxbooth.config.load import with_overrides

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
SHORT = """
SMALL = {
    "prior.weight": 0, "train.steps_per_dispatch": 1, "export": False,
    "validation.images_per_prompt": 1, "validation.steps": 1, "validation.prompts": ("a cat",),
}
long = jaxbooth.train
jaxbooth.train = lambda name, **values: long(name, **SMALL, **values)
"""


def test_the_version_is_the_packages():
    assert jaxbooth.__version__ == importlib.metadata.version("jaxbooth")


def test_dir_lists_what_is_imported_on_first_use():
    assert dir(jaxbooth) == sorted(jaxbooth.__all__)
    assert all(getattr(jaxbooth, name) is not None for name in jaxbooth.__all__)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute .trian.; it has Config, Pipeline, .* train"):
        jaxbooth.trian  # noqa: B018


@pytest.mark.parametrize(
    "overrides",
    [
        {"train": {"steps": 7}, "lora": {"rank": 4}},
        {"train.steps": 7, "lora.rank": 4},
        {"train": {"steps": 7}, "lora.rank": 4},
    ],
)
def test_overrides_are_sections_or_dotted_keys(overrides):
    config = jaxbooth.load_config("demo", overrides)
    assert (config.train.steps, config.lora.rank) == (7, 4)
    kept = jaxbooth.load_config("demo")
    assert config == kept.model_copy(
        update={
            "train": kept.train.model_copy(update={"steps": 7}),
            "lora": kept.lora.model_copy(update={"rank": 4}),
        }
    )


def test_a_list_of_subjects_is_a_value():
    subjects = [{"instance_dir": "rex", "instance_prompt": "sks dog", "class_prompt": "dog"}]
    config = jaxbooth.load_config(None, {"data.subjects": subjects})
    assert config.data.subjects[0].instance_prompt == "sks dog"


def test_an_own_subject_takes_the_embedded_ones_prompts_away():
    config = jaxbooth.load_config("demo", {"data": {"instance_dir": "dog"}})
    assert config.data.instance_prompt is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"train.stpes": 7}, "unknown key 'train.stpes'; perhaps you meant train.steps"),
        ({"seed.of": 7}, "unknown key 'seed.of': seed is a value and has no keys"),
        ({"train": {"steps": 0}}, "train.steps = 0 is not valid"),
        ({"train.steps": "many"}, "train.steps = 'many' is not valid"),
    ],
)
def test_an_override_that_cannot_be_used_is_one_sentence(overrides, sentence):
    with pytest.raises(jaxbooth.UserError, match=re.escape(sentence)):
        with_overrides(jaxbooth.Config(), overrides)


@pytest.fixture(scope="module")
def pipeline():
    """The embedded model, whose sampling no test here begins."""
    return jaxbooth.Pipeline.load("demo")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": "  "}, "Pipeline.sample: the prompt is empty"),
        ({"steps": 2.5}, "Pipeline.sample: steps = 2.5 is not valid"),
        ({"resolution": 60}, "60 is not a multiple of 16"),
        ({"width": 60}, "60 is not a multiple of 16"),
        ({"stpes": 3}, "Pipeline.sample: stpes is not valid: unexpected keyword argument"),
    ],
)
def test_sampling_with_an_argument_that_cannot_be_used_is_one_sentence(pipeline, arguments, sentence):
    with pytest.raises(jaxbooth.UserError, match=re.escape(sentence)):
        pipeline.sample(**({"prompt": "a cat"} | arguments))


def test_loading_checks_its_arguments_too():
    with pytest.raises(jaxbooth.UserError, match=r"Pipeline\.load: clip_skip = -1 is not valid"):
        jaxbooth.Pipeline.load("demo", clip_skip=-1)


@pytest.mark.slow
def test_the_examples_of_the_page_run_as_they_stand_and_nothing_is_logged_beside_the_commands_sentences(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    first, rest = blocks[0].replace("steps = 250", "steps = 1").split("\n", 1)
    program = "\n".join([first, SHORT, rest, *blocks[1:]])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = done.stdout.splitlines()
    assert f"1 True {tmp_path / 'runs' / 'cat' / 'export'}" in lines
    assert "16 250" in lines
    assert any("train.learning_rate = -1 is not valid" in line for line in lines)
    assert (tmp_path / "cat.png").exists()
