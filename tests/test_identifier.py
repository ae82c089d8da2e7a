"""What a run says of its identifier, by the vocabulary of its model: the demo's of 2,246 tokens, and CLIP's whole."""

import re
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from jaxbooth.base.identifier import MANY_MORE, find_identifier, read_identifier, suggest_identifiers
from jaxbooth.base.tokenizer import Tokenizer
from jaxbooth.config.schema import Subject
from jaxbooth.runs.start_notes import log_identifier
from jaxbooth.weights.skeleton import write_tokenizer
from tests.test_docs import PAGES

EXAMPLE = re.compile(r"(?:a|an|photo of) (\w+) (?:dog|cat|toy|teapot)\b")


@pytest.fixture(scope="module")
def tokenizers(base, tmp_path_factory) -> dict[str, Tokenizer]:
    """The demo's tokenizer, and that of Stable Diffusion."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder)
    clip = Tokenizer(CLIPTokenizer.from_pretrained(folder), vocabulary_size=49408, embedding_rows=49408)
    return {"demo": base.text.encoders[0].tokenizer, "clip": clip}


def said(capsys, tokenizer: Tokenizer, instance: str, kind: str | None, used: tuple[str, ...] = ()) -> str:
    subject = Subject(instance_dir=Path("photos"), instance_prompt=instance, class_prompt=kind)
    capsys.readouterr()
    log_identifier(tokenizer, subject, used, has_prior=kind is not None)
    return capsys.readouterr().out


@pytest.mark.parametrize(("model", "word", "tokens", "is_common"), [
    ("demo", "sks", 2, False), ("demo", "ohwx", 4, False), ("demo", "zwx", 3, False), ("demo", "monster", 1, True),
    ("demo", "apple", 1, True), ("clip", "sks", 1, False), ("clip", "ohwx", 1, False), ("clip", "zwx", 2, False),
    ("clip", "rex", 1, True), ("clip", "xjqzk", 5, False),
])  # fmt: skip
def test_a_words_tokens_depend_on_the_vocabulary(tokenizers, model, word, tokens, is_common):
    found = read_identifier(tokenizers[model], word)
    assert (len(found.ids), found.is_common) == (tokens, is_common)


@pytest.mark.parametrize(("model", "used", "expected"), [
    ("demo", (), ["sks", "phol", "tft"]), ("demo", ("tft",), ["sks", "phol"]),
    ("clip", (), ["sks", "ohwx", "phol"]), ("clip", ("sks", "a"), ["ohwx", "phol", "olis"]),
])  # fmt: skip
def test_suggestions_are_short_and_rare_for_the_model_and_not_taken(tokenizers, model, used, expected):
    found = suggest_identifiers(tokenizers[model], used)
    assert [identifier.word for identifier in found] == expected
    assert not any(identifier.is_common for identifier in found)


@pytest.mark.parametrize(("model", "prompts", "expected"), [
    ("demo", ("an emoji of a sks cat", "an emoji of a cat"), "identifier 'sks': 2 tokens, sk + s"),
    ("clip", ("a photo of sks dog", "a photo of dog"), "identifier 'sks': 1 token, sks"),
    ("clip", ("a photo of sks mushroom", None), "identifier 'sks': 1 token, sks"),
    ("demo", ("an emoji of a sks mushroom", None), "identifier 'sks': 2 tokens, sk + s"),
])  # fmt: skip
def test_a_good_identifier_is_shown_with_its_tokens_and_no_warning(capsys, tokenizers, model, prompts, expected):
    assert said(capsys, tokenizers[model], *prompts).strip() == expected


@pytest.mark.parametrize(("model", "prompts", "expected"), [
    ("demo", ("an emoji of an ohwx robot", "an emoji of a robot"),
     "'ohwx' is 4 tokens for this model, .* a rare identifier of 2, such as sks, phol or tft, binds better"),
    ("clip", ("a photo of xjqzk dog", "a photo of dog"), "'xjqzk' is 5 tokens .* of 1, such as sks, ohwx or phol"),
    ("demo", ("a monster cat", "a cat"), "'monster' is a word that the model knows, .* try sks, phol or tft"),
    ("clip", ("a photo of rex dog", "a photo of dog"), "'rex' is a word that the model knows"),
    ("clip", ("a photo of my dog", "a photo of a dog"), "'my' is a word that the model knows"),
    ("clip", ("a photo of a dog", "a photo of a dog"), "no word that the class prompt lacks; .* sks, ohwx or phol"),
])  # fmt: skip
def test_a_poor_identifier_is_warned_of_with_better_ones_for_the_model(capsys, tokenizers, model, prompts, expected):
    assert re.search(expected, said(capsys, tokenizers[model], *prompts).replace("\n", " "))


def test_the_rarest_word_that_only_the_subject_has_is_its_identifier(tokenizers):
    found = find_identifier(tokenizers["clip"], ["a", "photo", "of", "my", "ohwx", "dog"], ["a", "photo", "of", "dog"])
    assert found is not None
    assert found.word == "ohwx"


def test_identifiers_in_the_docs_are_good_ones_for_stable_diffusion(tokenizers):
    """As instance prompts of examples; `my` and its like are none."""
    text = " ".join(page.read_text() for page in PAGES)
    words = {word for word in EXAMPLE.findall(text) if len(word) <= 4} - {"of", "a", "the", "my", "blue", "red"}
    assert "sks" in words
    for word in words:
        found = read_identifier(tokenizers["clip"], word)
        assert len(found.ids) < 1 + MANY_MORE, word
        assert not found.is_common, word
