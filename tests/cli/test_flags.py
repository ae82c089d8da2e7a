"""Commands, flags and configuration files: help, typos, values out of range."""

import importlib.metadata
import subprocess
import sys

import pytest

from jaxbooth.cli.main import COMMANDS, main
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.errors import UserError
from tests.cli.arguments import train

# Help


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(capsys, argv):
    main(argv)
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("argv", [["help"], ["help", "doctor"], ["doctor", "--help"], ["completion", "-h"]])
def test_help_is_there_for_whoever_asks_in_words(capsys, argv):
    main(argv)
    assert capsys.readouterr().out.startswith("usage: jaxbooth")


def test_help_of_a_command_is_its_own_help(capsys):
    with pytest.raises(SystemExit):
        main(["help", "sample"])
    assert "--negative-prompt" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--version"], ["-V"]])
def test_the_version_is_that_of_the_package(capsys, argv):
    main(argv)
    assert capsys.readouterr().out.startswith(f"jaxbooth {importlib.metadata.version('jaxbooth')} (jax ")


def test_help_of_train_names_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    only_in_files = {"data.subjects"}
    assert [key for key in flatten(Config()) if flag(key) not in shown and key not in only_in_files] == []


@pytest.mark.parametrize(
    ("command", "flags"),
    [("sample", ["--prompt", "--negative-prompt", "--num", "--seed", "--out"]), ("export", ["--out", "--dtype"])],
)
def test_help_of_the_other_commands_names_their_flags(capsys, command, flags):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert [name for name in flags if name not in shown] == []


def test_the_package_runs_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "jaxbooth", "--help"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: jaxbooth")


def test_an_error_leaves_the_process_with_code_2_and_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-m", "jaxbooth", "trian"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown command 'trian'; did you mean train?")
    assert done.stderr.count("\n") == 1


# Commands and flags


def test_an_unknown_command_lists_the_known_ones(refused):
    commands = "train, train-many, sample, export, evaluate, report, plan, ui, lora, doctor, completion"
    assert refused("trian") == f"unknown command 'trian'; did you mean train? All commands are {commands}."
    assert refused("frobnicate") == f"unknown command 'frobnicate'; the commands are {commands}."


@pytest.mark.parametrize(
    ("name", "value"), [("--train.learning-rate", "0"), ("--train.b1", "1.5"), ("--data.resolution", "-64")]
)
def test_a_flag_out_of_range_is_one_sentence(refused, dog, name, value):
    error = refused(*train(dog, name, value))
    assert name in error or name.removeprefix("--").replace("-", "_") in error


def test_a_sample_flag_out_of_range_is_one_sentence(refused):
    assert "num" in refused("sample", "demo", "--prompt", "x", "--num", "0")


def test_debug_shows_the_traceback():
    argv = [sys.executable, "-m", "jaxbooth", "train", "nowhere.yaml", "--debug"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "nowhere.yaml is neither a file nor" in done.stderr


def test_debug_raises_what_the_library_raised():
    with pytest.raises(UserError, match="unknown command"):
        main(["--debug", "trian"])


def test_doctor_takes_no_arguments(refused):
    assert "takes no arguments" in refused("doctor", "please")


# Configuration files


def test_an_unknown_key_in_a_file_is_named_with_the_file(refused, tmp_path):
    (tmp_path / "run.yaml").write_text("train: {learning_rte: 1e-5}\n")
    error = refused("train", "run.yaml")
    assert "run.yaml" in error
    assert "'train.learning_rte'" in error


def test_a_configuration_that_is_not_there_lists_the_shipped_ones(refused):
    assert "(demo, demo-flow, klein-lora, sd15, sd15-lora, sd21, sdxl-lora, zimage-lora)" in refused(
        "train", "nowhere.yaml"
    )
