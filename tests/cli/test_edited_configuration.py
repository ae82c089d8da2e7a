"""A run whose config.yaml was edited is read, or refused in one sentence with the file and the key."""

import shutil
from pathlib import Path

import pytest

from tests.cli.arguments import SHORT, train


@pytest.fixture
def edited(trained, tmp_path) -> Path:
    """A run's folder whose configuration may be written over."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


EDITS = {
    b"": "data.resolution is not set",
    b"- 1\n- 2\n": "config.yaml: expected keys and values, found list",
    b"train: {steps: [1]}\n": "config.yaml: train.steps = [1] is not valid",
    b"train: {steps: 1e99}\n": "config.yaml: train.steps = '1e99' is not valid",
    b"seed: " + b"9" * 5000: "config.yaml holds a number of thousands of digits",
    b"seed: 1\nseed: 2\n": "config.yaml: the key 'seed' stands in line 1 and again in line 2",
    b"x: " + b"a" * 300_000: "config.yaml is larger than 262,144 bytes",
    b"seed: \xff\n": "config.yaml is not UTF-8 text",
    b"\0": "config.yaml is not valid YAML",
    b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 117)): "aliases",
}


@pytest.mark.parametrize("content", EDITS, ids=range(len(EDITS)))
def test_an_edited_configuration_is_named(refused, edited, tmp_path, content):
    (edited / "config.yaml").write_bytes(content)
    sentence = refused("sample", edited, "--prompt", "a cat", "--out", tmp_path / "out", "--steps", "1", "--num", "1")
    assert EDITS[content] in sentence
    assert len(sentence) < 500
    assert (edited / "config.yaml").read_bytes() == content
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [["export", "--out", "x"], ["evaluate"], ["report"]], ids=lambda command: command[0]
)
def test_every_command_refuses_it(refused, edited, command):
    (edited / "config.yaml").write_text("train: {steps: many}\n")
    name, *flags = command
    assert "config.yaml: train.steps = 'many' is not valid" in refused(name, edited, *flags)


def test_a_training_that_would_go_on_refuses_it_and_leaves_it_alone(refused, dog, edited):
    (edited / "config.yaml").write_text("train: {steps: many}\n")
    assert "config.yaml: train.steps = 'many' is not valid" in refused(*train(dog, "--run-dir", edited))
    assert (edited / "config.yaml").read_text() == "train: {steps: many}\n"


def test_a_folder_in_the_place_of_the_configuration_is_named(refused, edited):
    (edited / "config.yaml").unlink()
    (edited / "config.yaml").mkdir()
    assert "config.yaml is not a file" in refused("export", edited, "--out", "x")


def test_a_configuration_file_with_control_characters_in_its_name_is_named_with_escapes(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("train", "no\x1b[31m.yaml", *SHORT).startswith(r"no\x1b[31m.yaml is neither a file nor")
