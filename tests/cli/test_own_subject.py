"""A subject of the user's own under a shipped configuration: prompts, words and grids are the subject's."""

from pathlib import Path

import pytest

from jaxbooth.assets import shipped_configs
from jaxbooth.cli.parse import starting_config
from jaxbooth.config.load import load_config, reset_dependent_keys
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.subjects import initializer_token
from jaxbooth.metrics.prompts import name_subject
from jaxbooth.runs.validation import unrelated_prompt, validation_prompts

SHIPPED = sorted(path.stem for path in shipped_configs().glob("*.yaml"))


def own(name: str, instance: str, kind: str | None, **sections: dict) -> Config:
    """A shipped configuration with a subject of the user's own."""
    raw = load_config(name).model_dump(mode="json")
    data = {"instance_dir": "photos", "instance_prompt": instance, "class_prompt": kind}
    changed = {section: raw[section] | values for section, values in sections.items()}
    return Config.model_validate(raw | {"data": raw["data"] | data} | changed)


@pytest.mark.parametrize("name", SHIPPED)
def test_prompts_words_and_grids_are_the_users(name):
    text = {"placeholder_tokens": ("<rex>",)}
    config = own(name, "a photo of a <rex> dog", "a photo of a dog.", text=text)
    assert validation_prompts(config.validation, config.subjects) == [
        "a photo of a <rex> dog",
        "a photo of a dog.",
        "a photo of a red apple",
    ]
    assert initializer_token(config.text, config.subjects, "<rex>") == "dog"
    assert name_subject(config.subjects[0]) == ("<rex> dog", "dog")


@pytest.mark.parametrize("name", SHIPPED)
def test_prompts_that_the_user_sets_hold(name):
    config = own(name, "a sks dog", "a dog", validation={"prompts": ("a sks dog at sea",)})
    assert validation_prompts(config.validation, config.subjects) == ["a sks dog at sea"]


def test_the_demo_as_it_is_shows_its_cat_its_class_and_an_apple():
    expected = ["an emoji of a sks cat", "an emoji of a cat", "an emoji of a red apple"]
    config = load_config("demo")
    assert validation_prompts(config.validation, config.subjects) == expected


@pytest.mark.parametrize(("instance", "kind", "expected"), [
    ("an emoji of a sks robot", "an emoji of a robot", "an emoji of a red apple"),
    ("a sks teapot", "a teapot", "a red apple"),
    ("a painting of ohwx man", None, "a painting of a red apple"),
    ("a photo of sks apple", "a photo of apple", "a photo of a blue car"),
    ("a photo of sks dog on top of a rug", "a photo of dog on top of a rug", "a photo of a red apple"),
])  # fmt: skip
def test_the_unrelated_prompt_is_of_the_subjects_medium_and_another_thing(instance, kind, expected):
    assert unrelated_prompt([Subject(instance_dir=Path("a"), instance_prompt=instance, class_prompt=kind)]) == expected


def test_several_subjects_share_one_unrelated_prompt():
    pairs = (("an emoji of a sks cat", "an emoji of a cat"), ("an emoji of a tft apple", "an emoji of an apple"))
    subjects = [Subject(instance_dir=Path("a"), instance_prompt=one, class_prompt=kind) for one, kind in pairs]
    assert unrelated_prompt(subjects) == "an emoji of a blue car"


@pytest.mark.parametrize(
    "flag", [["--data.instance-dir", "dog"], ["--data.instance-dir=dog"], ["--data.instance_dir", "dog"]]
)
def test_prompts_of_the_embedded_cat_do_not_describe_other_photos(flag):
    data = starting_config(["demo", *flag]).data
    assert (data.instance_prompt, data.class_prompt, data.class_dir) == (None, None, None)
    assert (data.num_class_images, data.resolution) == (48, 64)


def test_other_photos_without_a_prompt_of_their_own_are_refused(refused, dog):
    assert refused("train", "demo", "--data.instance-dir", dog).startswith("--data.instance-prompt is missing")
    prompt = ("--data.instance-prompt", "an emoji of a sks dog")
    assert refused("train", "demo", "--data.instance-dir", dog, *prompt).startswith("--data.class-prompt is missing")


def test_prompts_in_a_file_of_the_users_own_stay_with_other_photos():
    config = Config.model_validate({"data": {"instance_dir": "a", "instance_prompt": "a sks dog"}})
    assert reset_dependent_keys(config, {"data.instance_dir"}) == config


def test_the_embedded_subject_keeps_its_prompts_beside_other_settings():
    assert starting_config(["demo", "--train.steps", "3"]) == load_config("demo")
