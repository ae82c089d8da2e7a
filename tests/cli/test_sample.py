"""Sampling and exporting: what is refused, and that nothing is written over."""

import pytest

from jaxbooth.cli.main import main
from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config
from tests.cli.arguments import contents

# Sampling


def test_sampling_a_run_without_a_checkpoint_says_what_to_do(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(Config()))
    error = refused("sample", run, "--prompt", "a dog")
    assert "has no checkpoint yet" in error
    assert not (tmp_path / "samples").exists()


def test_sampling_with_an_empty_prompt_is_refused(refused):
    assert "--prompt is empty" in refused("sample", "demo", "--prompt", " ")


def test_a_file_in_place_of_the_sample_folder_is_refused_before_drawing(refused, tmp_path):
    (tmp_path / "out").write_text("a file")
    error = refused("sample", "demo", "--prompt", "a dog", "--num", "1", "--steps", "1", "--out", tmp_path / "out")
    assert "--out" in error
    assert (tmp_path / "out").read_text() == "a file"


def test_sampling_what_is_not_there_names_it(refused):
    assert "nowhere" in refused("sample", "nowhere", "--prompt", "a dog")


def test_more_steps_than_the_schedule_has_are_refused_when_sampling(refused):
    assert "--steps 1001" in refused("sample", "demo", "--prompt", "a dog", "--steps", "1001")


# Export


def test_exporting_to_a_folder_that_is_there_leaves_it_alone(refused, trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    error = refused("export", trained, "--out", out)
    assert "out exists already" in error
    assert "--out" in error
    assert contents(out) == {"precious.txt": b"keep me"}


def test_exporting_to_a_file_leaves_it_alone(refused, trained, tmp_path):
    (tmp_path / "out").write_text("keep me")
    assert "out exists already" in refused("export", trained, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "keep me"


def test_exporting_what_is_no_run_names_it(refused, tmp_path):
    assert f"no such run: {tmp_path / 'gone'}" in refused("export", tmp_path / "gone", "--out", tmp_path / "out")
    assert not (tmp_path / "gone").exists()


def test_exporting_a_run_without_a_checkpoint_writes_nothing(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(Config()))
    assert "has no checkpoint yet" in refused("export", run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_export_format_names_the_known_ones(capsys, trained, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(trained), "--out", str(tmp_path / "out"), "--format", "onnx"])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("onnx", "diffusers", "single-file", "lora", "embeddings"))
