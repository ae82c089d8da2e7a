"""`jaxbooth sample`: numbers that go on, the contact sheet, a model's own settings, and names at which nothing is."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.base.model import BaseModel
from jaxbooth.cli.main import main
from jaxbooth.cli.sample_images import next_index, sample
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import ValidationConfig
from jaxbooth.errors import UserError
from jaxbooth.evaluation.models import parse_model
from jaxbooth.pipeline import SamplingDefaults, default_sampling, validation_sampling
from tests.cli.arguments import contents, train
from tests.commands import read_facts
from tests.small_models import write_model

TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model with random weights that was made for four steps without guidance."""
    return write_model("sd15", tmp_path_factory.mktemp("tiny") / "model", **TURBO)


def run_folder(path: Path, **sections) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(dump_config(Config(**sections)))
    return path


# Numbers and the contact sheet


def test_a_second_call_goes_on_where_the_first_ended(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["sample", str(tiny), "--prompt", "a cat", "--seed", "7", "--out", str(out)]
    main([*flags, "--num", "2"])
    first = contents(out)
    main([*flags, "--num", "1"])
    assert {name: content for name, content in contents(out).items() if name in first} == first
    assert {path.name for path in out.glob("*.png")} == {"7-000.png", "7-001.png", "7-002.png"}
    assert [read_facts(out / f"7-00{number}.png")["index"] for number in range(3)] == ["0", "1", "2"]
    assert "generated 2 images in" in (printed := capsys.readouterr().out)
    assert "(7-000.png to 7-001.png; euler_ancestral, 4 steps, no guidance)" in printed
    assert "generated 1 image in" in printed
    sheets = sorted((out / "contact_sheets").iterdir())
    assert [path.name for path in sheets] == ["7-000-to-001.png", "7-002-to-002.png"]
    with Image.open(sheets[0]) as sheet, Image.open(out / "7-000.png") as image:
        side = image.width * -(-128 // image.width)
        shown = sheet.crop((6, 6, 6 + side, 6 + side)).resize(image.size, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))


@pytest.mark.parametrize(("names", "seed", "expected"), [
    ([], 0, 0), (["0-000.png", "0-001.png"], 0, 2),
    (["0-007.png"], 0, 8), (["0-003.png"], 1, 0), (["10-004.png"], 0, 0),
    (["0-1234.png"], 0, 1235), (["0-000.txt", "a0-009.png", "0-009.png.bak", "0-9.png", "0-x.png"], 0, 0),
])  # fmt: skip
def test_the_next_number_is_after_the_highest_of_the_seed(tmp_path, names, seed, expected):
    for name in names:
        (tmp_path / name).touch()
    assert next_index(tmp_path, seed) == expected


def test_a_folder_that_is_not_there_yet_begins_at_zero(tmp_path):
    assert next_index(tmp_path / "new", 3) == 0


# A model's own settings


def test_the_embedded_model_is_sampled_as_its_runs_are(base):
    assert default_sampling("demo", base) == validation_sampling(load_config("demo"), base) == ("dpmpp_2m", 20, 4.0)


@pytest.mark.parametrize(("family", "scheduler", "expected"), [
    ("sd15", {}, ("dpmpp_2m", 25, 7.5)), ("sd21", {"prediction_type": "v_prediction"}, ("dpmpp_2m", 25, 7.5)),
    ("sdxl", {}, ("dpmpp_2m", 25, 5.0)), ("sdxl", TURBO, ("euler_ancestral", 4, 1.0)),
    ("sd21", TURBO | {"_class_name": "EulerDiscreteScheduler"}, ("euler_ancestral", 4, 1.0)),
    ("sd15", {"timestep_spacing": "trailing"}, ("dpmpp_2m", 25, 7.5)),
    ("sd15", TURBO | {"prediction_type": "v_prediction"}, ("dpmpp_2m", 25, 7.5)),
])  # fmt: skip
def test_a_plain_models_guidance_is_its_familys_and_none_for_turbo_models(tmp_path, family, scheduler, expected):
    base = BaseModel.read(write_model(family, tmp_path / "model", **scheduler), "float32")
    assert default_sampling("model", base) == expected


def test_a_run_is_sampled_as_its_grids_unless_asked_otherwise(base):
    config = Config(validation=ValidationConfig(sampler="ddim", steps=8, guidance_scale=3))
    defaults = validation_sampling(config, base)
    assert defaults == ("ddim", 8, 3.0)
    assert defaults.override(None, 5, None) == ("ddim", 5, 3.0)
    assert SamplingDefaults().override("euler", None, 1.0) == ("euler", 25, 1.0)


# Names at which nothing is


@pytest.mark.parametrize(("name", "expected"), [
    ("runs/dgo", "no such run or model: runs/dgo (did you mean runs/dog?)."),
    ("runs/dog-loar/", "no such run or model: runs/dog-loar/ (did you mean runs/dog-lora?)."),
    ("dgo", "no such run or model: dgo (did you mean runs/dog?)."),
    ("./runs/hedgehog", "no such run or model: ./runs/hedgehog."),
    ("elsewhere/cat", "no such run or model: elsewhere/cat (did you mean elsewhere/cats?)."),
    ("gone/away/dog", "no such run or model: gone/away/dog (there is no folder gone/away here)."),
])  # fmt: skip
def test_a_name_at_which_nothing_is_comes_with_the_runs_that_resemble_it(refused, tmp_path, name, expected):
    for folder in ("runs/dog", "runs/dog-lora", "elsewhere/cats"):
        run_folder(tmp_path / folder)
    (tmp_path / "runs" / "dgx").mkdir()  # no run
    assert refused("sample", name, "--prompt", "a dog") == expected
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("command", [["export", "--out", "out"], ["evaluate"], ["report"]])
def test_every_command_says_that_there_is_no_such_run(refused, tmp_path, command):
    run_folder(tmp_path / "runs" / "dog")
    assert refused(command[0], "runs/dgo", *command[1:]) == "no such run: runs/dgo (did you mean runs/dog?)."


def test_a_run_to_compare_with_that_is_not_there_is_no_hub_id(tmp_path):
    run_folder(tmp_path / "runs" / "dog")
    with pytest.raises(UserError, match=r"no such run or model: runs/dgo \(did you mean runs/dog\?\)"):
        parse_model("runs/dgo")


def test_a_hub_id_is_still_one_beside_runs(tmp_path):
    run_folder(tmp_path / "runs" / "dog")
    assert parse_model("stabilityai/sdxl-turbo").path == "stabilityai/sdxl-turbo"


def test_a_checkpoint_file_that_is_not_there_is_a_model_that_is_not_there(refused):
    assert "model gone.safetensors: no such folder or file" in refused(
        "sample", "gone.safetensors", "--prompt", "a dog"
    )


def test_a_folder_of_runs_is_none_itself(refused, tmp_path):
    run_folder(tmp_path / "runs" / "dog")
    assert (
        refused("sample", "runs", "--prompt", "a dog")
        == "runs is a folder of runs; name one of them, such as runs/dog."
    )


def test_a_run_as_the_model_of_another_is_told_to_be_exported_first(refused, tmp_path, dog):
    run_folder(tmp_path / "runs" / "dog")
    error = refused(*train(dog, "--model", "runs/dog"))
    assert error.endswith(
        "runs/dog is a run; write a model with `jaxbooth export RUN --format diffusers --out FOLDER`."
    )


def test_a_run_that_moved_is_found_where_it_is(refused, tmp_path):
    shutil.move(run_folder(tmp_path / "runs" / "dog"), tmp_path / "dog")
    assert "has no checkpoint yet" in refused("sample", "dog", "--prompt", "a dog")


def test_a_folder_whose_numbers_are_used_up_is_refused_and_nothing_is_replaced(tmp_path):
    (tmp_path / "7-999999999.png").write_bytes(b"the last one")
    with pytest.raises(UserError, match="holds an image numbered 999999999 of seed 7; choose another folder"):
        sample("demo", "a cat", tmp_path, num=1, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["7-999999999.png"]
