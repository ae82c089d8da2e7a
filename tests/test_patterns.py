"""Regular expressions from outside match as `re` does, and are stopped where they would run for ever."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.errors import UserError
from jaxbooth.storage.patterns import first_matches

NAMES = ("unet.conv_in", "unet.down_blocks.0.attn1.to_q", "text_encoder.encoder.layers.0.mlp.fc1")


@given(patterns=st.lists(st.text("a.*b\\|()", max_size=6), max_size=4), texts=st.lists(st.text("ab", max_size=6)))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_first_expression_that_matches_all_of_a_text_is_found(patterns, texts):
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error:
        with pytest.raises(UserError, match=r"x .* is not a regular expression"):
            first_matches(tuple(patterns), tuple(texts), "x")
        return
    expected = [next((n for n, one in enumerate(compiled) if one.fullmatch(text)), None) for text in texts]
    assert list(first_matches(tuple(patterns), tuple(texts), "x")) == expected


@pytest.mark.parametrize("pattern", [r"(.*)*!", r"(\w+\.?)+!", r"(?:a|\w|[a-z.0-9_]|.)*?!", r"(([\w.])+)+-"])
def test_an_expression_that_backtracks_for_ever_is_stopped_and_named(pattern):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"--lora.targets '.*' takes more than 0.5 s to match; write it without"):
        first_matches((pattern,), NAMES, "--lora.targets", seconds=0.5)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a" * 1001, "is longer than 1000 characters"),
        ("(", "is not a regular expression (missing ), unterminated subpattern"),
        ("a{99999999999}", "is not a regular expression (the repetition number is too large)"),
        ("(?R)", "is not a regular expression (unknown extension ?R"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(UserError) as refused:
        first_matches((pattern,), NAMES, "file.safetensors: alpha_pattern")
    assert str(refused.value).startswith("file.safetensors: alpha_pattern '")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


def test_too_many_expressions_are_refused():
    with pytest.raises(UserError, match="x holds 10001 expressions, and 10000 is the most"):
        first_matches(("a",) * 10_001, ("a",), "x")


def test_lookahead_and_inline_flags_work_as_in_python():
    assert first_matches((r"unet\.(?!conv).*", "(?i)UNET.*"), NAMES, "x") == [1, 0, None]
