"""Whatever characters a path has, what lies there is trained, resumed, drawn and exported, and stays where it is."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxbooth.base.model import BaseModel
from jaxbooth.cli.main import main
from jaxbooth.console.messages import console, info, shell_quote
from jaxbooth.storage.files import new_folder, write_text
from jaxbooth.weights.diffusers_write import write_folder
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source

from .small_models import files_of, write_model

NAMES = [
    "a[b]", "[", "]", "*", "?", "[!a-z]*", "{x}", "~", "two words ", "-dash", "#%41&;|", "\"q'uote`$(x)!", ":cat:",
    "emoji 😀 é", "new\nline", "tab\tand\rreturn", "x" * 200, "ü" * 100, "..hidden", ".hidden", "name.safetensors.d",
]  # fmt: skip
BACKSLASH = "back\\slash"  # in a run folder refused: see `test_checkpoints`
SHORT = [
    "--data.instance-prompt", "a sks cat's \"photo\" $HOME", "--data.resolution", "32", "--train.prior-weight", "0",
    "--train.batch-size", "1", "--train.checkpoint-every", "1", "--lora.rank", "2", "--lora.targets", "attention",
    "--validation.prompts", "a cat", "--validation.images-per-prompt", "1",
    "--validation.steps", "1", "--validation.every", "1000",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small random model."""
    return write_model("sd15", tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Prepared models go here; relative paths lie in the test's own folder."""
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def photos(folder: Path, name: str) -> Path:
    """Writes a folder with two photos of that name."""
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"photo {name[:100]}{index}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_and_of_folders_of_any_name_is_trained_resumed_drawn_and_exported(name, model, tmp_path, capsys):
    there = Path("there")
    base = there / "models" / name
    with new_folder(base) as folder:
        write_folder(model, {}, folder)
    subject, run = photos(there / "photos" / name, name), there / "runs" / name
    command = ["train", *SHORT, "--model", str(base), "--data.instance-dir", str(subject), "--run-dir", str(run)]
    main([*command, "--train.steps", "1"])
    assert f"jaxbooth sample {shell_quote(str(run.absolute()))} --prompt {shell_quote(SHORT[1])}\n" in (
        capsys.readouterr().out
    )
    main([*command, "--train.steps", "2"])
    assert "resumed at step 1 of 2" in capsys.readouterr().out
    out = there / "outs" / name
    main(["export", str(run), "--out", str(out), "--format", "single-file"])
    assert load_file(out / f"{name}.safetensors")
    main(["export", str(run), "--out", str(there / "loras" / name)])
    assert load_file(there / "loras" / name / f"{name}_kohya.safetensors")
    drawn = there / "drawn" / name
    main(["sample", str(run), "--prompt", "a cat", "--num", "1", "--steps", "1", "--out", str(drawn)])
    assert next(drawn.glob("*.png"))
    main(["report", str(run), "--out", str(there / "pages" / name)])
    assert (there / "pages" / name).read_bytes()
    made = {path.name for path in there.iterdir()}
    assert made == {"models", "photos", "runs", "outs", "loras", "drawn", "pages"}
    assert all([path.name for path in folder.iterdir()] == [name] for folder in there.iterdir())


@pytest.mark.slow
def test_a_backslash_is_a_character_like_others_but_in_a_run_folder(model, tmp_path, capsys):
    base = Path(BACKSLASH) / "model"
    with new_folder(base) as folder:
        write_folder(model, {}, folder)
    subject = photos(Path(BACKSLASH) / "photos", BACKSLASH)
    command = ["train", *SHORT, "--model", str(base), "--data.instance-dir", str(subject), "--train.steps", "1"]
    with pytest.raises(SystemExit):
        main([*command, "--run-dir", f"{BACKSLASH}/run"])
    assert "checkpoints cannot be kept in" in capsys.readouterr().err
    assert not (Path(BACKSLASH) / "run").exists()
    main([*command, "--run-dir", "run"])
    main(["export", "run", "--out", f"{BACKSLASH}/out"])
    assert load_file(Path(BACKSLASH) / "out" / "out_kohya.safetensors")


@pytest.mark.parametrize("name", [*NAMES, BACKSLASH])
def test_a_model_is_opened_converted_and_written_in_folders_of_any_name(name, model):
    with new_folder(Path("out") / name) as folder:
        write_folder(model, {}, folder)
    assert files_of(Path("out") / name) == files_of(model)
    prepared = resolve_model(Source(f"out/{name}", prediction_type="v_prediction"))
    assert BaseModel.read(prepared).schedule.prediction_type == "v"
    assert files_of(Path("out") / name) == files_of(model)
    assert [path.name for path in Path("out").iterdir()] == [name]


@pytest.mark.parametrize("name", [*NAMES, BACKSLASH, "x" * 255, "😀" * 63])
def test_a_file_of_any_name_is_written_and_written_anew(name, tmp_path):
    for content in ("first", "second"):
        write_text(tmp_path / "in" / name, content)
    assert [(path.name, path.read_text()) for path in (tmp_path / "in").iterdir()] == [(name, "second")]


@pytest.mark.parametrize("name", [*NAMES, BACKSLASH, "both\\'\n", "\x7f\x1b[31m"])
def test_a_printed_command_is_one_line_that_a_shell_takes_back(name):
    with console.capture() as captured:
        info(f"printf %s {shell_quote(name)}")
    assert captured.get().count("\n") == 1
    assert subprocess.run(["bash", "-c", captured.get()], capture_output=True, check=True).stdout == name.encode()
