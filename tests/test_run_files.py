"""Files of a run that were edited, damaged or put there by hand: one sentence, or looked past."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxbooth.data.images import ImageFile
from jaxbooth.errors import UserError
from jaxbooth.evaluation.images import open_image_folder
from jaxbooth.report.report import make_report
from jaxbooth.report.run_data import checkpoint_sizes, folder_size
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.drift import read_latents
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.inputs import record_images
from jaxbooth.runs.restore import confirm_base

from .made_up_runs import made_up_run

NO_STEPS = ["1²", "٣", "-5", "007", "9_0", "+9", " 9", "9.orbax-checkpoint-tmp", "damaged-9", "9" * 30, "step_9"]


def test_only_plain_numbers_are_checkpoints(tmp_path):
    for name in ("0", "12", "7", *NO_STEPS):
        (tmp_path / name).mkdir()
    (tmp_path / "40").write_text("a file")
    (tmp_path / "12" / "state").write_text("x" * 10)
    assert checkpoint_steps(tmp_path) == [0, 7, 12]
    assert checkpoint_sizes(tmp_path) == {0: 0, 7: 0, 12: 10}
    assert checkpoint_steps(tmp_path / "none") == []


@pytest.mark.parametrize("name", NO_STEPS)
def test_a_report_looks_past_folders_that_are_no_checkpoints(name, tmp_path):
    run = made_up_run(tmp_path / "run")
    (run / "checkpoints" / name).mkdir()
    shutil.copy(run / "samples" / "step_000020.png", run / "samples" / f"step_{name}.png")
    assert make_report([run]).is_file()


def test_sizes_follow_no_symlinks(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("12345")
    (tmp_path / "run" / "all").symlink_to("/")
    (tmp_path / "run" / "loop").symlink_to(".")
    assert folder_size(tmp_path / "run") == 5


GROUPS = {"instance": [ImageFile(Path("a.png"), "a cat")]}


@pytest.mark.parametrize("content", ["[7]", "", "{", "null"])
def test_a_damaged_list_of_images_is_a_sentence(content, tmp_path):
    run = RunFolder(tmp_path)
    run.images.write_text(content)
    with pytest.raises(UserError, match=r"images\.json .*; put it back, or remove it to take the images that are"):
        record_images(run, GROUPS)
    assert run.images.read_text() == content


@pytest.mark.parametrize("content", ['{"instance": 7}', '{"instance": [["a.png"]]}', "{}"])
def test_an_edited_list_of_images_is_warned_of(content, tmp_path, capsys):
    run = RunFolder(tmp_path)
    run.images.write_text(content)
    record_images(run, GROUPS)
    assert "are not those" in capsys.readouterr().out
    assert json.loads(run.images.read_text()) == {"instance": ["a.png"]}


@pytest.mark.parametrize("content", ["[7]", "", '"x"'])
def test_an_edited_record_of_the_base_model_is_a_sentence(content, base, tmp_path):
    run = RunFolder(tmp_path)
    run.base_model.write_text(content)
    with pytest.raises(UserError, match=r"base_model\.json .*; put it back\.$"):
        confirm_base(run, base)


def test_another_fingerprint_names_the_file_that_holds_it(base, tmp_path):
    run = RunFolder(tmp_path)
    run.base_model.write_text('{"fingerprint": 7}')
    with pytest.raises(UserError, match=r"not those in base_model\.json\)"):
        confirm_base(run, base)


@pytest.mark.parametrize("content", ["[7]", "", '{"seed": {"a": 1}}', "{}"])
def test_an_edited_manifest_of_an_evaluation_is_a_sentence(content, tmp_path):
    (tmp_path / "generation.json").write_text(content)
    with pytest.raises(UserError, match=r"move that folder away"):
        open_image_folder(tmp_path, {"seed": 0})


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-5], lambda whole: b"PK\x03\x04" + whole])
def test_damaged_latents_of_the_base_model_are_a_sentence(damage, tmp_path):
    path = tmp_path / "base_latents.npy"
    np.save(path, np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(read_latents(path), np.ones((2, 3)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path} is damaged; put it back, or remove it"):
        read_latents(path)


def test_latents_that_hold_code_are_not_run(tmp_path):
    path = tmp_path / "base_latents.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        read_latents(path)


@pytest.mark.parametrize("entry", ["export", ".export"])
def test_an_export_is_not_written_through_a_symlink_in_the_run_s_folder(entry, tmp_path):
    run = RunFolder(tmp_path / "run")
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    (tmp_path / "elsewhere" / "run" / "precious").write_text("mine")
    run.root.mkdir()
    (run.root / entry).symlink_to(tmp_path / "elsewhere")
    with run.new_export() as fresh:
        fresh.mkdir(parents=True)
        (fresh / "model").write_text("new")
    assert not run.export.is_symlink()
    assert (run.export / "model").read_text() == "new"
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*")] == ["run", "precious"]
