"""A command line that cannot be parsed ends in one sentence, however long what was typed is."""

import pytest

from jaxbooth.cli.parse_errors import parse_error
from tests.cli.arguments import CLASS, SHORT

SUBJECT = ("--data.instance-dir", "demo", *SHORT, *CLASS)


@pytest.mark.parametrize(
    ("flag", "value", "problem"),
    [
        ("--train.steps", "1e12", "'1e12' is not a whole number."),
        ("--train.batch-size", "5.5", "'5.5' is not a whole number."),
        ("--lora.rank", "eight", "'eight' is not a whole number."),
        ("--train.learning-rate", "fast", "'fast' is not a number."),
        ("--loss.noise-offset", "0,1", "'0,1' is not a number."),
        ("--seed", "9" * 5000, "has thousands of digits, and no number needs as many."),
        ("--train.b2", "1" * 400, "inf is not valid: input should be a finite number."),
    ],
)
def test_a_value_that_is_no_number_is_named_with_its_flag(refused, flag, value, problem):
    assert refused("train", *SUBJECT, flag, value) == f"{flag} {problem}"


def test_a_value_of_a_megabyte_is_shown_in_part(refused):
    error = refused("train", *SUBJECT, "--train.steps", "x" * 100_000)
    assert error.startswith("--train.steps 'xxxx")
    assert error.endswith("is not a whole number.")
    assert len(error) < 200


def test_a_choice_lists_the_others(refused):
    error = refused("train", *SUBJECT, "--train.optimizer", "sgd")
    assert "invalid choice 'sgd' for argument '--train.optimizer'" in error
    assert "lion" in error


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["sample", "demo"], "--prompt (what to generate)"),
        (["export", "runs/none"], "--out (new folder to write)"),
        (["export"], "a run folder and --out (new folder to write)"),
        (["evaluate"], "a run folder"),
    ],
)
def test_what_is_missing_is_named_with_the_command(refused, argv, missing):
    assert refused(*argv) == f"jaxbooth {argv[0]} needs {missing}; see `jaxbooth {argv[0]} --help`."


def test_words_too_many_are_named(refused):
    assert refused("train", "demo", "extra") == "unrecognized options: extra; see `jaxbooth train --help`."


BOX = """\
\x1b[31m╭─ Value error ─────────────────╮\x1b[0m
│ Error parsing \x1b[1m--a.b\x1b[0m: could not     │
│ be read                       │
│ ───────────────────────────── │
│ Argument helptext:            │
╰───────────────────────────────╯
"""
PLAIN = """\
 Value error
 -------------------------------
  Error parsing --a.b: could not
  be read
  -------------------------------
  Argument helptext:
"""


@pytest.mark.parametrize("printed", [BOX, PLAIN], ids=["terminal", "ascii"])
def test_colors_and_the_drawing_of_the_box_make_no_difference(printed):
    assert parse_error(printed, "jaxbooth x") == "error parsing --a.b: could not be read; see `jaxbooth x --help`."
