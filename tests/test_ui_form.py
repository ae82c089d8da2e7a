"""The form of a new run: every key of the schema, checked as the command line checks it, and said as others type it."""

import re
import shlex

import pytest
import yaml

from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flatten
from jaxbooth.ui.command_line import command_parts, yaml_text
from jaxbooth.ui.draft import Draft, keys_in, read_draft
from jaxbooth.ui.fields import fields_by_key, format_field
from jaxbooth.ui.roots import Roots
from tests.ui_server import ui_server

SUBJECTS = """
- {instance_dir: a, instance_prompt: a sks dog, class_prompt: a dog, weight: 2}
- {instance_dir: b, instance_prompt: a hta cat, class_prompt: a cat}
"""


@pytest.fixture
def roots(tmp_path) -> Roots:
    """Folders with photos of a dog."""
    (tmp_path / "photos" / "dog").mkdir(parents=True)
    return Roots.open(tmp_path)


def draft(roots: Roots, base: str = "config:sd15-lora", **settings: str | list[str]) -> Draft:
    """Returns what a form says whose fields have these values; `train__steps` is train.steps."""
    fields = {
        f"k.{key.replace('__', '.')}": [value] if isinstance(value, str) else value for key, value in settings.items()
    }
    form = {"base": [base], "noun": ["dog"], **fields}
    return read_draft(form, roots, roots.photos / "dog")


def command_line(config: Config, start: str | None) -> str | None:
    """Returns the command that the page shows."""
    parts = command_parts(config, start)
    return " ".join(parts) if parts else None


def typed(line: str) -> Config:
    """Returns the configuration that a command line trains."""
    words = shlex.split(line)
    assert words[:2] == ["jaxbooth", "train"]
    argv = words[2:]
    return parse(Config, argv, "jaxbooth train [CONFIG]", starting_config(argv))


def test_photos_and_a_word_are_enough(roots):
    found = draft(roots)
    assert (found.problem, found.missing, found.warnings) == ("", (), ())
    data = found.config.data
    assert (data.instance_prompt, data.class_prompt) == ("a photo of sks dog", "a photo of a dog")
    assert found.config.lora.rank == 16
    assert found.config.run_dir == str(roots.runs / "dog")


def test_without_photos_and_a_word_the_form_says_what_is_missing_and_checks_the_rest(roots):
    found = read_draft({"k.train.steps": ["0"]}, roots, None)
    assert found.missing == ("photos", "what they show")
    assert found.problem == "train.steps = '0' is not valid: input should be greater than 0."


@pytest.mark.parametrize("base", ["config:demo", "config:sd15", "config:zimage-lora", "config:klein-lora", "other"])
def test_every_base_gives_a_run_that_can_be_typed(roots, base):
    found = draft(roots, base, model="owner/model")
    assert found.problem == ""
    assert typed(command_line(found.config, found.start.source)) == found.config


@pytest.mark.parametrize(
    "settings",
    [
        {"lora__rank": "8", "lora__kind": "dora", "data__flip": "true", "export": "false"},
        {"data__instance_prompt": 'it\'s </script> "sks" $(dog) `x` \\ ünï', "seed": "7"},
        {"data__instance_prompt": "-sks dog", "train__learning_rate": "1e-5", "train__remat": "blocks"},
        {"prior__method": ["", "class-images", "weight-anchor"], "loss__timestep_shift": "2.5"},
        {"prior__method": [""], "validation__prompts": "a sks dog\r\na dog, red\r\n", "variant": "fp16"},
        {"text__placeholder_tokens": "<a>\n<b>", "data__instance_prompt": "a photo of <a> <b>"},
    ],
)
def test_command_and_yaml_mean_the_same_as_the_form(roots, tmp_path, settings):
    found = draft(roots, "config:sd15-lora", **settings)
    assert found.problem == ""
    line = command_line(found.config, found.start.source)
    assert typed(line) == found.config
    (tmp_path / "run.yaml").write_text(yaml_text(found.config))
    assert load_config(tmp_path / "run.yaml") == found.config


def test_a_command_has_only_what_is_changed(roots):
    assert command_line(load_config("sd15-lora"), "sd15-lora") == "jaxbooth train sd15-lora"
    found = draft(roots, train__steps="1000", train__batch_size="2")
    assert " --train.batch-size 2" in command_line(found.config, "sd15-lora")
    assert "steps" not in command_line(found.config, "sd15-lora")


def test_several_subjects_are_said_in_yaml_alone(roots, tmp_path):
    inside = SUBJECTS.replace("instance_dir: ", f"instance_dir: {roots.photos}/")
    found = read_draft({"k.data.subjects": [inside], "base": ["config:sd15-lora"]}, roots, None)
    assert found.problem == ""
    assert [subject.weight for subject in found.config.subjects] == [2, 1]
    assert command_line(found.config, "sd15-lora") is None
    (tmp_path / "run.yaml").write_text(yaml_text(found.config))
    assert load_config(tmp_path / "run.yaml") == found.config


@pytest.mark.parametrize("text", ["None", ""])
def test_a_text_that_flags_would_read_otherwise_is_said_in_yaml_alone(text):
    config = load_config("sd15-lora", {"variant": text})
    assert command_line(config, "sd15-lora") is None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train__steps": "many"}, "train.steps"),
        ({"lora__rank": "0"}, "lora.rank"),
        ({"train__eps": "2"}, "train.eps"),
        ({"model_quantization": "int3"}, "model_quantization"),
        ({"data__random_crops": "8"}, "data.random_crops"),
        ({"text__learning_rate": "1e-5"}, "text.learning_rate"),
        ({"text__trigger_word": "ohwx"}, "text.trigger_word"),
        ({"data__subjects": "- {a: 1}"}, "data.subjects"),
    ],
)
def test_a_problem_stands_beside_the_key_that_it_names(roots, settings, key):
    found = draft(roots, **settings)
    assert found.problem_keys[0] == key


def test_photos_are_shown_while_another_setting_is_wrong(roots):
    found = draft(roots, train__steps="0", data__resolution="64")
    assert found.problem_keys == ("train.steps",)
    assert found.config.data.instance_dir == roots.photos / "dog"
    assert found.config.data.resolution == 64
    found = draft(roots, data__resolution="much")
    assert found.config.data.instance_dir == roots.photos / "dog"


def test_keys_are_found_as_whole_words():
    assert keys_in("--lora.rank 16 needs more") == ["lora.rank"]
    assert keys_in("--text.learning-rate and --train.learning-rate differ") == [
        "text.learning_rate",
        "train.learning_rate",
    ]
    assert keys_in("the model of a run with a seed") == []
    assert keys_in("seed = -1 is not valid: x") == ["seed"]


def test_warnings_are_shown_and_not_printed(roots, capsys):
    found = draft(roots, train__learning_rate="1")
    assert "10,000 times" in found.warnings[0]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("trained", "rank", "method", "prompt"),
    [
        ("lora", 16, ("class-images",), "a photo of sks dog"),
        ("whole", None, ("class-images",), "a photo of sks dog"),
        ("tokens", None, ("none",), "a photo of <sks> dog"),
    ],
)
def test_what_is_trained_decides_the_keys_that_belong_to_it(roots, trained, rank, method, prompt):
    form = {"base": ["config:sd15-lora"], "noun": ["dog"], "trained": [trained], "k.lora.kind": ["dora"]}
    found = read_draft(form, roots, roots.photos / "dog")
    assert found.problem == ""
    config = found.config
    assert (config.lora.rank, config.prior.method, config.data.instance_prompt) == (rank, method, prompt)
    assert config.text.is_textual_inversion == (trained == "tokens")


def test_every_key_is_on_the_page_exactly_once(tmp_path):
    with ui_server(tmp_path) as server:
        page = server.get("/new").text
    assert sorted(re.findall(r'data-key="([^"]+)"', page)) == sorted(flatten(Config()))


@pytest.mark.parametrize("name", ["demo", "sd15-lora", "zimage-lora"])
def test_a_field_reads_back_what_it_shows(name):
    config = load_config(name)
    values = {}
    for key, field in fields_by_key().items():
        text = format_field(flatten(config)[key], field.widget)
        values[key] = field.parse(text.split("\n") if field.widget == "choices" else [text])
    assert load_config(None, {key: value for key, value in values.items() if value not in (None, "")}) == config


def test_a_subject_reads_back_as_yaml():
    config = load_config(None, {"data.subjects": yaml.safe_load(SUBJECTS)})
    field = fields_by_key()["data.subjects"]
    text = format_field(config.data.subjects, field.widget)
    again = load_config(None, {"data.subjects": field.parse([text])})
    assert dump_config(again) == dump_config(config)
