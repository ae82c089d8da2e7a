"""What is printed is bounded, and nothing in it can move the cursor, change colours or turn the text round."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.errors import format_message, printable, short_repr
from tests.commands import environment


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("bell\a and nul\0", r"bell\x07 and nul\x00"),
        ("\u202eright to left", r"\u202eright to left"),
        ("half \udcff", r"half \udcff"),
        ("line\u2028separator", r"line\u2028separator"),
    ],
)
def test_control_characters_become_escapes(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["é", "日本　語", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}", "C:\\new", ""]
)
def test_other_text_stays(text):
    assert printable(text) == text


@given(text=st.text(st.characters(), max_size=2000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_sentence_has_one_line_of_at_most_500_characters(text):
    sentence = format_message(text * 3)
    assert len(sentence) <= 500
    assert len(sentence.splitlines()) <= 1


def test_a_long_sentence_keeps_its_beginning_and_what_to_do():
    sentence = format_message(f"run.yaml: {'x' * 10**6} is not valid; set it to 3.")
    assert sentence.startswith("run.yaml: xxx")
    assert sentence.endswith("xxx is not valid; set it to 3.")


def test_a_value_that_holds_itself_or_has_a_million_parts_is_shown_in_a_few_words():
    itself: list = []
    itself.append(itself)
    doubled: list = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    for value in (itself, doubled, "x" * 10**6, list(range(10**6)), 10**5000, {key: key for key in range(1000)}):
        assert len(short_repr(value)) < 200


def test_a_terminal_that_cannot_encode_a_prompt_shows_an_escape():
    code = (
        "from jaxbooth.console.messages import info, warn\n"
        "from jaxbooth.cli.main import main\n"
        "import sys\n"
        "try: main(['train', '日.yaml'])\n"
        "finally: info('a photo of 日'); warn('é日')\n"
    )
    settings = environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=settings, timeout=300)
    assert done.returncode == 2, done.stderr
    assert b"a photo of \\u65e5" in done.stdout
    assert rb"error: \u65e5.yaml is neither a file nor" in done.stderr
    assert b"Traceback" not in done.stderr
