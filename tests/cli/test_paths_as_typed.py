"""Paths that the system refuses: one sentence that names them, before anything is computed or made."""

import os
from pathlib import Path

import pytest

from jaxbooth.cli.main import COMMANDS, main
from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config, fill_defaults, resolve_paths
from jaxbooth.weights.architectures import FAMILIES
from tests.cli.arguments import contents, train

LONG = "x" * 300
DEEP = "/".join(["y" * 200] * 25)


@pytest.fixture(autouse=True)
def odd(elsewhere, tmp_path) -> None:
    """What stands in the way in the current folder."""
    (tmp_path / "broken").symlink_to("/nonexistent/x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")


def names(error: str, path: str) -> None:
    """Asserts that a sentence names a path, or the beginning of one that is too long to be shown."""
    assert path.removeprefix("~").removeprefix("./")[:40] in error
    assert len(error) <= 500


@pytest.mark.parametrize("path", [LONG, DEEP, "broken", "loop", "loop/x", "file/x", "fifo", "/proc/x", "fifo/x"])
def test_a_run_folder_that_cannot_be_made(path, refused, dog, tmp_path):
    before = contents(tmp_path)
    names(refused(*train(dog, "--run-dir", path)), path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flag", ["--data.instance-dir", "--model", "--vae", "--lora.init", "--data.class-dir"])
@pytest.mark.parametrize("path", [LONG, "loop", "./file/x", "fifo", "~nobody-of-this-name/x"])
def test_an_input_that_cannot_be_opened(flag, path, refused, dog):
    if (flag, path[0]) == ("--data.class-dir", "~"):
        return  # a folder of that name is made
    lora = ("--lora.rank", "4") if flag == "--lora.init" else ()
    names(refused(*train(dog, *lora, flag, path)), path)


@pytest.mark.parametrize("command", ["sample", "export", "evaluate", "report"])
@pytest.mark.parametrize("path", [LONG, "loop", "./file/x", "fifo", "broken", "folder", "~nobody-of-this-name/x"])
def test_a_run_that_cannot_be_opened(command, path, refused):
    more = {"sample": ("--prompt", "a cat"), "export": ("--out", "new")}.get(command, ())
    names(refused(command, path, *more), path)


@pytest.mark.parametrize("path", [LONG, DEEP, "broken", "broken/x", "loop", "file", "file/x", "fifo", "/proc/x"])
@pytest.mark.parametrize("command", ["sample", "export"])
def test_a_folder_to_write_that_cannot_be_made(command, path, refused, trained, tmp_path):
    before = contents(tmp_path)
    given = ["--prompt", "a cat"] if command == "sample" else []
    error = refused(command, trained, *given, "--out", path)
    names(error, path)
    assert "--out" in error
    assert contents(tmp_path) == before


def test_a_configuration_with_a_name_that_is_too_long(refused):
    names(refused("train", LONG), LONG)


def test_an_argument_that_is_not_utf_8(refused):
    assert refused("train", "demo", "--run-dir", "a\udcffb").startswith("the argument 'a\\udcffb' is not UTF-8")
    assert "is not UTF-8" in refused("sample", "demo", "--prompt", "\udcff")


@pytest.mark.parametrize(("key", "value"), [("run_dir", '"a\\0b"'), ("model", '"\\0"'), ("vae", '"\\uD800"')])
def test_a_name_in_a_configuration_that_no_file_can_have(key, value, refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{key}: {value}\n")
    assert f"{key} = " in refused("train", "mine.yaml")


@pytest.mark.parametrize("entry", ["metrics.jsonl", "contact_sheet.png", "selection.json", "images.json"])
def test_a_folder_in_the_place_of_a_run_s_file(entry, refused, dog, tmp_path):
    entry = {"images.json": "images.json"}.get(entry, entry)
    started(tmp_path / "run", dog)
    (tmp_path / "run" / entry).mkdir()
    assert f"run/{entry} is no file, and a run writes a file of that name" in refused(*train(dog, "--run-dir", "run"))


def test_a_link_where_a_run_appends_what_it_keeps_aside(refused, dog, tmp_path):
    started(tmp_path / "run", dog)
    (tmp_path / "notes.txt").write_text("a year of work")
    (tmp_path / "run" / "metrics.jsonl.superseded").symlink_to(tmp_path / "notes.txt")
    message = refused(*train(dog, "--run-dir", "run"))
    assert "run/metrics.jsonl.superseded is no file, and a run writes a file of that name" in message


@pytest.mark.parametrize("entry", ["checkpoints", "samples", "tensorboard", "export"])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/nonexistent")])
def test_a_file_in_the_place_of_a_run_s_folder(entry, make, refused, dog, tmp_path):
    started(tmp_path / "run", dog)
    make(tmp_path / "run" / entry)
    assert f"run/{entry} is no folder, and a run writes a folder of that name" in refused(
        *train(dog, "--run-dir", "run")
    )


def started(run: Path, dog: Path) -> None:
    """Makes a run folder that holds its configuration alone, as one that was killed early."""
    run.mkdir()
    data = {"instance_dir": dog, "instance_prompt": "a photo of sks dog", "class_prompt": "a cat", "resolution": 64}
    made = Config.model_validate({"run_dir": str(run), "data": data | {"num_class_images": 1}, "prior": {"steps": 1}})
    filled = fill_defaults(resolve_paths(made), 64, FAMILIES["sd15"].sampling)
    (run / "config.yaml").write_text(dump_config(filled))


def test_what_the_system_says_of_a_file_in_the_middle_of_the_work_is_a_sentence(capsys, monkeypatch):
    def fail(_: list[str]) -> None:
        Path("folder").read_bytes()

    monkeypatch.setitem(COMMANDS, "report", fail)
    with pytest.raises(SystemExit, match="2"):
        main(["report"])
    sentence = "error: folder cannot be used (Is a directory); check that path, what is there, and its permissions.\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("entry", ["unet", "unet/diffusion_pytorch_model.safetensors", "tokenizer", "model_index.json"])
def test_a_part_of_a_model_that_may_not_be_read(entry, refused, dog, model):
    (model / entry).chmod(0)
    if os.access(model / entry, os.R_OK):
        pytest.skip("this user may read everything")
    error = refused(*train(dog, "--model", model))
    assert str(model / entry) in error
    assert "Permission denied" in error


@pytest.mark.parametrize("flag", ["--run-dir", "--data.instance-dir", "--data.class-dir"])
def test_a_folder_that_may_not_be_read_or_written(flag, refused, dog, tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user may read everything")
    error = refused(*train(dog, flag, tmp_path / "closed"))
    assert str(tmp_path / "closed") in error
    assert "Permission denied" in error
