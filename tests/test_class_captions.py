"""Captions without the identifier, for output preservation."""

from pathlib import Path

import pytest

from jaxbooth.config.schema import Subject
from jaxbooth.data.class_captions import class_caption, class_captions, identifier_words
from jaxbooth.data.images import ImageFile
from jaxbooth.errors import UserError

DOG = Subject(instance_dir=Path("dog"), instance_prompt="a photo of sks dog", class_prompt="a photo of dog")
ALONE = Subject(instance_dir=Path("dog"), instance_prompt="an emoji of a sks cat")


def test_the_identifier_is_what_the_instance_prompt_has_and_the_class_prompt_lacks():
    assert identifier_words(DOG) == ["sks"]
    assert identifier_words(DOG.model_copy(update={"class_prompt": "photo of a DOG"})) == ["sks"]
    assert identifier_words(DOG.model_copy(update={"instance_prompt": "a photo of zwx ohwx dog"})) == ["zwx", "ohwx"]


def test_without_a_class_prompt_it_is_the_first_word_of_what_is_shown():
    assert identifier_words(ALONE) == ["sks"]


def test_placeholder_tokens_belong_to_it():
    prompt = "a photo of <cat> cat"
    subject = DOG.model_copy(update={"instance_prompt": prompt, "class_prompt": "a photo of cat"})
    assert identifier_words(subject, ["<cat>"]) == ["<cat>"]
    assert class_caption("the <cat> cat asleep", subject, ["<cat>"]) == "the cat asleep"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of sks dog", "a photo of dog"),
        ("sks, dog, grass, 1girl", "dog, grass, 1girl"),
        ("dog, SKS, grass", "dog, grass"),
        ("a sks dog on the beach, sks", "a dog on the beach"),
        ("a dog called sksy and sks", "a dog called sksy and"),
        ("a dog on the beach", None),
        ("sks", ""),
    ],
)
def test_it_is_taken_out_of_a_caption_as_a_word(caption, expected):
    assert class_caption(caption, DOG) == expected


def test_the_instance_prompt_becomes_the_class_prompt():
    subject = DOG.model_copy(update={"instance_prompt": "an sks dog", "class_prompt": "a dog"})
    assert class_caption("an sks dog", subject) == "a dog"


def test_one_caption_may_stand_for_all():
    files = [ImageFile(Path("a.png"), "anything"), ImageFile(Path("b.png"), "else", 1)]
    assert class_captions(files, DOG, "a photo of dog") == ["a photo of dog"] * 2


@pytest.mark.parametrize(
    ("caption", "problem"), [("a dog at home", "does not hold sks"), ("sks", "holds nothing but sks")]
)
def test_a_caption_without_the_identifier_or_anything_else_is_refused(caption, problem):
    files = [ImageFile(Path("photos/a.png"), "a photo of sks dog"), ImageFile(Path("photos/b.png"), caption, 1)]
    with pytest.raises(UserError, match=rf"photos/b\.png: its caption '{caption}' {problem}, .*--prior\.class-caption"):
        class_captions(files, DOG, None)


def test_a_prompt_that_names_no_subject_has_no_identifier_to_take_out():
    subject = DOG.model_copy(update={"instance_prompt": "a dog"})
    with pytest.raises(UserError, match=r"its caption 'a dog' does not hold an identifier"):
        class_captions([ImageFile(Path("a.png"), "a dog")], subject, None)


@pytest.mark.parametrize(
    ("shared", "problem"), [("a SKS dog", "holds sks, which names"), ("A dog asleep", r"is the caption of b\.png")]
)
def test_a_shared_caption_that_is_about_the_subject_is_refused(shared, problem):
    files = [ImageFile(Path("a.png"), "a sks dog"), ImageFile(Path("b.png"), "a dog asleep", 1)]
    with pytest.raises(UserError, match=f"--prior.class-caption '{shared}' {problem}"):
        class_captions(files, DOG, shared)
