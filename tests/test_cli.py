"""The command line: whatever the input, one sentence that says what to change, and nothing of the user's touched."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.cli import COMMANDS, main
from jaxbooth.config import Config, TrainConfig, dump_config, flag, flatten
from jaxbooth.errors import UserError
from jaxbooth.pipeline import Base, load_params
from jaxbooth.training.checkpoint import Checkpoints
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import initial_state

# Short in every respect, so that an error that goes unnoticed ends soon.
SHORT = (
    "--data.instance-prompt", "a photo of sks dog",
    "--data.resolution", "64", "--data.num-class-images", "1", "--prior.steps", "1", "--prior.batch-size", "1",
    "--train.steps", "1", "--validation.steps", "1", "--validation.num", "1",
)  # fmt: skip
CLASS = ("--data.class-prompt", "a cat")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths, such as the default run folder's, lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dog(tmp_path) -> Path:
    """A folder with two pictures."""
    folder = tmp_path / "dog"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model, to be damaged."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mesh) -> Path:
    """A run folder with one checkpoint, of weights that are still the base model's."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    folder.mkdir()
    config = Config(run_dir=folder, train=TrainConfig(optimizer="lion"))
    (folder / "config.yaml").write_text(dump_config(config))
    unet = load_params(Base.read(DEMO_MODEL), mesh, ("unet",), ("unet",))
    checkpoints = Checkpoints(folder / "checkpoints", 1)
    checkpoints.save(initial_state(unet, make_optimizer(config.train), False, mesh), 1, config)
    checkpoints.close()
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that must end with one sentence on stderr, and returns that sentence."""

    def run(*argv: str | Path, code: int = 2) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in argv])
        error = capsys.readouterr().err
        assert stop.value.code == code, error
        assert error.startswith("error: ")
        assert error.endswith(".\n")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").strip()

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(dog: Path, *flags: str | Path) -> list[str | Path]:
    return ["train", "--data.instance-dir", dog, *SHORT, *CLASS, *flags]


# Help


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(capsys, argv):
    main(argv)
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_help_of_train_names_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert [key for key in flatten(Config()) if flag(key) not in shown] == []


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
    done = subprocess.run([sys.executable, "-m", "jaxbooth", "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: jaxbooth")


def test_an_error_leaves_the_process_with_code_2_and_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-m", "jaxbooth", "trian"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown command 'trian'; use one of train, sample, export, doctor.\n"


# Commands and flags


def test_an_unknown_command_lists_the_known_ones(refused):
    assert refused("trian") == "unknown command 'trian'; use one of train, sample, export, doctor."


@pytest.mark.parametrize(("typo", "meant"), [("--train.learning-rte", "--train.learning-rate"), ("--sede", "--seed")])
def test_a_typo_in_a_flag_suggests_the_right_one(capsys, dog, typo, meant):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in train(dog, typo, "1")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert typo in error
    assert meant in error
    assert "Traceback" not in error


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
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
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
    assert "(demo, sd15)" in refused("train", "nowhere.yaml")


# Pictures


def test_no_instance_folder_names_the_flag(refused):
    assert "--data.instance-dir" in refused("train", *SHORT, *CLASS)


def test_a_missing_instance_folder_is_named_with_its_flag(refused, tmp_path):
    error = refused(*train(tmp_path / "gone"))
    assert "--data.instance-dir" in error
    assert "gone is not a folder" in error
    assert not (tmp_path / "runs").exists()


def test_an_instance_folder_without_pictures_is_named(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    error = refused(*train(tmp_path / "empty"))
    assert "--data.instance-dir" in error
    assert "empty holds no picture" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_undecodable_picture_is_named(refused, dog, damage):
    content = (dog / "1.png").read_bytes()
    (dog / "1.png").write_bytes(b"I am no picture" if damage == "text" else content[: len(content) // 2])
    before = contents(dog)
    assert "1.png cannot be decoded" in refused(*train(dog))
    assert contents(dog) == before


def test_a_caption_for_a_missing_picture_is_named(refused, dog):
    (dog / "metadata.jsonl").write_text('{"file_name": "7.png", "text": "a dog"}\n')
    assert "7.png does not exist" in refused(*train(dog))


def test_one_folder_for_subject_and_class_is_refused(refused, dog):
    before = contents(dog)
    error = refused(*train(dog, "--data.class-dir", dog.parent / "." / "dog"))
    assert "--data.instance-dir" in error
    assert "--data.class-dir" in error
    assert contents(dog) == before


def test_class_pictures_of_another_prompt_are_refused(refused, dog, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"settings": {"prompt": "a bird"}, "images": {}}')
    before = contents(folder)
    assert "--data.class-dir" in refused(*train(dog, "--data.class-dir", folder))
    assert contents(folder) == before


# Settings


def test_an_empty_instance_prompt_is_refused(refused, dog):
    assert "--data.instance-prompt is missing" in refused(*train(dog, "--data.instance-prompt", " "))


@pytest.mark.parametrize("flags", [(), ("--data.class-prompt", "")])
def test_the_prior_needs_a_class_prompt(refused, dog, flags):
    error = refused("train", "--data.instance-dir", dog, *SHORT, *flags)
    assert "--data.class-prompt" in error
    assert "--train.prior-weight 0" in error


def test_a_resolution_that_the_model_does_not_divide_comes_with_one_that_it_does(refused, dog):
    assert "--data.resolution 100 is not a multiple of 16" in refused(*train(dog, "--data.resolution", "100"))


def test_a_batch_that_accumulation_does_not_divide_is_refused(refused, dog):
    error = refused(*train(dog, "--train.batch-size", "3", "--train.accumulation", "2"))
    assert "--train.batch-size 3" in error
    assert "--train.accumulation 2" in error


@pytest.mark.parametrize("name", ["--prior.steps", "--validation.steps"])
def test_more_sampling_steps_than_the_schedule_has_are_refused_with_their_flag(refused, dog, name):
    assert f"{name} 1001" in refused(*train(dog, name, "1001"))


def test_a_mesh_that_does_not_fit_the_devices_is_refused(refused, dog):
    assert "--mesh.fsdp 3" in refused(*train(dog, "--mesh.fsdp", "3"))


# Run folders


def test_a_run_folder_of_another_configuration_names_the_difference(refused, dog, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: demo\nseed: 7\n")
    before = contents(run)
    error = refused(*train(dog, "--run-dir", run))
    assert "--seed 7" in error
    assert "--run-dir" in error
    assert contents(run) == before


def test_a_folder_that_is_no_run_is_left_alone(refused, dog, tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    before = contents(thesis)
    assert "thesis exists and is not a run folder" in refused(*train(dog, "--run-dir", thesis))
    assert contents(thesis) == before


def test_a_file_in_place_of_the_run_folder_is_left_alone(refused, dog, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "run exists and is not a run folder" in refused(*train(dog, "--run-dir", tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "a file"


def test_the_instance_folder_is_no_run_folder(refused, dog):
    before = contents(dog)
    assert "is not a run folder" in refused(*train(dog, "--run-dir", dog))
    assert contents(dog) == before


def test_another_programs_configuration_is_left_alone(refused, dog, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "config.yaml").write_text("title: my site\n")
    assert "unknown key 'title'" in refused(*train(dog, "--run-dir", site))
    assert contents(site) == {"config.yaml": b"title: my site\n"}


def test_a_run_folder_below_a_file_is_refused(refused, dog, tmp_path):
    (tmp_path / "file").write_text("a file")
    assert "file/run" in refused(*train(dog, "--run-dir", tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.parametrize("mistake", ["undecodable picture", "too many prior steps", "model without weights"])
def test_a_refused_input_claims_no_run_folder(refused, dog, model, mistake):
    flags = {
        "undecodable picture": (),
        "too many prior steps": ("--prior.steps", "1001"),
        "model without weights": ("--model", model, "--train.prior-weight", "0"),
    }
    if mistake == "undecodable picture":
        (dog / "1.png").write_bytes(b"I am no picture")
    if mistake == "model without weights":
        (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(*train(dog, "--run-dir", "run", *flags[mistake]))
    assert not Path("run/config.yaml").exists()


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


def test_a_picture_that_is_there_is_not_drawn_over(refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (4, 4)).save(out / "0-002.png")
    before = contents(out)
    error = refused("sample", "demo", "--prompt", "a dog", "--num", "3", "--out", out)
    assert "0-002.png exists already" in error
    assert "--out" in error
    assert contents(out) == before


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
    assert "no config.yaml" in refused("export", tmp_path / "gone", "--out", tmp_path / "out")
    assert not (tmp_path / "gone").exists()


def test_exporting_a_run_without_a_checkpoint_writes_nothing(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(Config()))
    assert "has no checkpoint yet" in refused("export", run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_export_format_names_the_known_one(refused, trained, tmp_path):
    assert "diffusers" in refused("export", trained, "--out", tmp_path / "out", "--format", "onnx")


# Base models


@pytest.mark.parametrize("prior", [("--train.prior-weight", "1"), ("--train.prior-weight", "0")])
def test_a_model_with_pickled_weights_alone_says_how_to_convert_them(refused, dog, model, prior):
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    before = contents(model)
    error = refused(*train(dog, "--model", model, *prior))
    assert "diffusion_pytorch_model.bin is not safetensors" in error
    assert "save_pretrained" in error
    assert contents(model) == before


@pytest.mark.parametrize("length", [0, 100, 1_000_000])
def test_truncated_weights_are_named(refused, dog, model, length):
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    before = contents(model)
    assert f"{path} cannot be read" in refused(*train(dog, "--model", model))
    assert contents(model) == before


def test_truncated_weights_are_named_when_sampling(refused, model):
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} cannot be read" in refused("sample", model, "--prompt", "a dog")


def test_a_model_without_weights_is_named(refused, dog, model):
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae holds no .safetensors file" in refused(*train(dog, "--model", model))


def test_a_single_file_is_no_model(refused, dog, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    error = refused(*train(dog, "--model", tmp_path / "model.safetensors"))
    assert "model.safetensors is a file" in error
    assert "diffusers" in error


def test_a_folder_that_is_no_model_says_what_is_missing(refused, dog, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "model_index.json is missing" in refused(*train(dog, "--model", tmp_path / "photos"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": "FluxPipeline"}'])
def test_a_model_index_of_something_else_is_named(refused, dog, model, text):
    (model / "model_index.json").write_text(text)
    assert "model_index.json" in refused(*train(dog, "--model", model))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_component_without_its_configuration_is_named(refused, dog, model, component):
    (model / component / "config.json").unlink()
    assert f"{component}/config.json is missing" in refused(*train(dog, "--model", model))


def test_a_model_without_a_tokenizer_is_named(refused, dog, model):
    shutil.rmtree(model / "tokenizer")
    assert "tokenizer" in refused(*train(dog, "--model", model))


def test_weights_of_another_shape_are_named(refused, dog, model):
    text = (model / "unet" / "config.json").read_text()
    (model / "unet" / "config.json").write_text(text.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    assert text != (model / "unet" / "config.json").read_text()
    assert "unet" in refused(*train(dog, "--model", model))


def test_a_hub_that_cannot_be_reached_is_a_failure_and_no_bad_input(refused, dog):
    assert "nobody/nothing" in refused(*train(dog, "--model", "nobody/nothing"), code=1)
