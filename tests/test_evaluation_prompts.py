"""The prompts of an evaluation."""

import re
from pathlib import Path

import pytest

from jaxbooth.config.schema import Subject
from jaxbooth.config.subjects import SubjectName, name_subject
from jaxbooth.errors import UserError
from jaxbooth.metrics.prompts import (
    LIVE_TEMPLATES,
    OBJECT_TEMPLATES,
    EvalPrompt,
    class_prompts,
    prompts_without_subject,
    read_templates,
    subject_prompts,
    template_set,
)
from tests.made_up_images import CASES

PUBLISHED = Path(__file__).parents[1] / "../shared/dreambooth/prompts_and_classes.txt"


def subject(instance: str, kind: str | None = None) -> Subject:
    return Subject(instance_dir=Path("photos"), instance_prompt=instance, class_prompt=kind)


def test_the_templates_are_the_published_ones():
    blocks = PUBLISHED.read_text().split("prompt_list = [")[1:]
    for block, ours in zip(blocks, (OBJECT_TEMPLATES, LIVE_TEMPLATES), strict=True):
        published = re.findall(r"'(.*?)'\.format", block)
        assert len(published) == 25
        assert list(ours) == [template.replace("{0} {1}", "{}") for template in published]


@pytest.mark.parametrize(
    ("instance", "kind", "expected"),
    [
        ("a photo of sks dog", "a photo of dog", ("sks dog", "dog")),
        ("an emoji of a sks cat", "an emoji of a cat", ("sks cat", "cat")),
        ("a sks teapot", "a teapot", ("sks teapot", "teapot")),
        ("an image of the ohwx rubber duck", "a rubber duck", ("ohwx rubber duck", "rubber duck")),
        ("a photo of sks dog", None, ("sks dog", "dog")),
        ("sks", None, ("sks", "sks")),
        ("a photo of my sks dog.", "a photo of my dog.", ("sks dog", "dog")),
        ("a photo of sks dog, high quality", "a photo of dog, high quality", ("sks dog", "dog")),
    ],
)
def test_subject_and_class_are_read_off_the_prompts(instance: str, kind: str | None, expected: tuple[str, str]):
    assert name_subject(subject(instance, kind)) == expected


def test_what_the_user_says_goes_first():
    assert name_subject(subject("a photo of sks dog", "a photo of dog"), "sks puppy", "puppy") == ("sks puppy", "puppy")


@pytest.mark.parametrize(
    ("noun", "kind"), [("dog", "live"), ("tabby cat", "live"), ("hot dog stand", "live"), ("teapot", "object")]
)
def test_animals_and_people_wear_hats(noun: str, kind: str):
    assert template_set(noun) == kind


def test_captions_leave_the_identifier_out():
    prompts = subject_prompts(["a {} in the snow", "portrait of sks dog"], SubjectName("sks dog", "dog"), 0)
    assert prompts == [
        EvalPrompt("a sks dog in the snow", "a dog in the snow", "subject", 0),
        EvalPrompt("portrait of sks dog", "portrait of dog", "subject", 0),
    ]


def test_prompts_without_the_identifier_are_found():
    name = SubjectName("sks dog", "dog")
    prompts = subject_prompts(["a {} in the snow", "a dog at sea"], name, 0) + class_prompts([subject("a", "a dog")])
    assert prompts_without_subject(prompts, [name]) == ["a dog at sea"]


def test_a_class_is_compared_with_each_of_its_subjects():
    subjects = [subject("a sks dog", "a dog"), subject("a zwx cat"), subject("an ohwx dog", "a dog")]
    assert [(prompt.text, prompt.subject) for prompt in class_prompts(subjects)] == [("a dog", 0), ("a dog", 2)]


def test_a_file_holds_one_prompt_a_line(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\na {} at sea\n\n a {} at sea\nas a statue: {}\n")
    assert read_templates(path) == ("a {} at sea", "as a statue: {}")


def test_a_byte_order_mark_and_line_ends_are_no_part_of_prompts():
    assert read_templates(CASES / "prompts-bom" / "prompts.txt") == ("a {} in snow",)


@pytest.mark.parametrize(
    "content", [b"a {}\xe9", b"a {} " + b"x" * 20_000, b"x\n" * 2**20], ids=["latin", "long", "large"]
)
def test_prompts_that_cannot_be_read_whole_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"--prompts .*prompts\.txt"):
        read_templates(path)


@pytest.mark.parametrize("content", [None, "# nothing\n\n"])
def test_an_unreadable_or_empty_file_is_one_sentence(tmp_path: Path, content: str | None):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"--prompts .*prompts\.txt"):
        read_templates(path)
