"""Input and output folders that overlap are refused with both flags; what only looks like it is not."""

from pathlib import Path

import pytest

from jaxbooth.cli.export_run import export
from jaxbooth.cli.sample_images import sample
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.evaluation.evaluate import evaluation_folder
from jaxbooth.report.report import make_report
from jaxbooth.runs.folder import open_run
from jaxbooth.runs.overlap import check_run_folders
from jaxbooth.runs.train import train

from .made_up_runs import made_up_run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with a folder of photos and a local model; `alias` is another name of the photos."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/best", "model/unet", "clip"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "alias").symlink_to("photos")
    return tmp_path


def config(run_dir="runs/cat", instance="photos", classes=None, **more) -> Config:
    data = {"instance_dir": instance, "instance_prompt": "a sks cat", "class_prompt": "a cat", "class_dir": classes}
    return Config.model_validate({"run_dir": run_dir, "data": data} | more)


RUN, PHOTOS, CLASS, MODEL = "--run-dir", "--data.instance-dir", "--data.class-dir", "--model"
OVERLAPS = [
    ({"classes": "runs/cat"}, RUN, CLASS),
    ({"classes": "runs"}, RUN, CLASS),
    ({"classes": "runs/cat/samples"}, CLASS, "a folder of --run-dir,"),
    ({"classes": "runs/cat/checkpoints/x"}, CLASS, "a folder of --run-dir,"),
    ({"classes": "runs/cat/export"}, CLASS, "a folder of --run-dir,"),
    ({"classes": "photos"}, CLASS, PHOTOS),
    ({"classes": "photos/best"}, CLASS, PHOTOS),
    ({"classes": "."}, RUN, CLASS),
    ({"classes": "alias"}, CLASS, PHOTOS),
    ({"classes": "x/../photos"}, CLASS, PHOTOS),
    ({"instance": "photos/best", "classes": "photos"}, PHOTOS, CLASS),
    ({"classes": "model/unet", "model": "model"}, CLASS, MODEL),
    ({"run_dir": "photos"}, RUN, PHOTOS),
    ({"run_dir": "photos/run"}, RUN, PHOTOS),
    ({"run_dir": "alias/run"}, RUN, PHOTOS),
    ({"run_dir": "."}, PHOTOS, RUN),
    ({"instance": "."}, RUN, PHOTOS),
    ({"run_dir": "model/run", "model": "model"}, RUN, MODEL),
    ({"run_dir": "model", "model": "model/unet"}, MODEL, RUN),
    ({"run_dir": "model/run", "vae": "model"}, RUN, "--vae"),
    ({"run_dir": "clip/run", "evaluation": {"clip": "clip", "every": 5}}, RUN, "--evaluation.clip"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "inner", "outer"), OVERLAPS)
def test_folders_of_a_run_that_overlap_are_refused_before_anything_is_made(given, inner, outer, here):
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError) as refused:
        train(config(**given))
    sentence = str(refused.value)
    assert sentence.startswith(f"{inner} ")
    assert f" {outer} " in sentence
    assert sentence.endswith(f", where outputs and inputs would mix; choose another folder for {inner}.")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"classes": "runs/cat/prior"},
        {"classes": "runs/cat/prior/animals"},
        {"classes": "runs/dog/prior"},
        {"classes": "photos-of-the-class"},
        {"classes": "photos", "prior": {"weight": 0}},
        {"run_dir": "photos-run", "model": "model"},
        {"run_dir": "gs://bucket/photos", "instance": "photos"},
        {"model": "demo", "run_dir": "demo"},
    ],
)
def test_folders_beside_each_other_pass(given, here):
    check_run_folders(config(**given))


@pytest.mark.parametrize("run_dir", ["back\\slash", "logs:/gs:/run", "gs://bucket/a[b]", "gs://bucket/*/run"])
def test_a_run_folder_whose_checkpoints_could_not_be_read_is_refused_before_anything_is_made(run_dir, here):
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match=r"^checkpoints cannot be kept in .*; choose another --run-dir\.$"):
        train(config(run_dir))
    assert sorted(here.rglob("*")) == before


def test_every_subject_s_folders_are_compared(here):
    subjects = [
        {"instance_dir": folder, "instance_prompt": f"a {name} cat", "class_prompt": "a cat", "class_dir": classes}
        for folder, name, classes in (("photos/best", "sks", None), ("clip", "mzk", "photos"))
    ]
    with pytest.raises(UserError, match=r"data\.subjects, entry 1: instance_dir \S+ lies in data\.subjects, entry 2"):
        check_run_folders(Config.model_validate({"data": {"subjects": subjects}}))


@pytest.fixture
def run(here) -> Path:
    """A run of the photos on the local model."""
    data = {"instance_dir": str(here / "photos"), "class_dir": str(here / "classes")}
    return made_up_run(here / "run", data=data)


OUTSIDE = ["photos", "photos/new", "alias/new", "classes/new", "run/prior", "run/checkpoints/new", "run/samples/new"]


@pytest.mark.parametrize("out", OUTSIDE)
def test_nothing_made_of_a_run_is_written_among_its_inputs_and_parts(out, run):
    _, settings = open_run(run)
    sentence = r"--out \S+ (is also|lies in) (--data\.\w+-dir|a folder of the run,) \S+, where outputs and inputs"
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(UserError, match=sentence):
        sample(str(run), "a cat", Path(out))
    if out.endswith("new"):
        with pytest.raises(UserError, match=sentence):
            export(run, Path(out))
        with pytest.raises(UserError, match=sentence):
            make_report([run], f"{out}/report.html")
    with pytest.raises(UserError, match=sentence):
        evaluation_folder(Path(out), run, settings)
    assert sorted(run.parent.rglob("*")) == before


def test_images_of_a_model_are_not_saved_in_its_folder(here):
    with pytest.raises(UserError, match=r"--out model/unet/new lies in the model model, "):
        sample("model", "a cat", Path("model/unet/new"))


def test_an_evaluation_may_lie_in_the_run_and_anywhere_else(run):
    _, settings = open_run(run)
    for out in (run / "evaluation", run / "other", run.parent / "scores"):
        assert evaluation_folder(out, run, settings) == out


def test_a_report_may_lie_in_the_run(run):
    assert make_report([run], run / "mine.html").read_bytes()
