"""Runs on an object store: the names stay whole, and everything that a run writes and reads goes there."""

import json
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxbooth.cli.parse import parse
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.data.class_images import class_folders
from jaxbooth.data.images import load_image, scan_folder
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.errors import UserError
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.runs.lock import lock_run
from jaxbooth.runs.metric_writer import MetricWriter, read_metrics
from jaxbooth.storage.files import write_bytes, write_json, write_png
from jaxbooth.storage.remote import as_path, check_reachable, is_local
from jaxbooth.storage.text import read_json
from jaxbooth.training.state import TrainState
from tests.commands import SHORT, jaxbooth, succeed
from tests.stores import install_meanwhile
from tests.training import configure

RUN = "gs://bucket/runs/cat"
STORE = (
    "import sys; from tests.stores import install; install(sys.argv.pop(1)); from jaxbooth.cli.main import main; main()"
)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """The folder behind gs://bucket/runs/cat."""
    install_meanwhile(tmp_path, monkeypatch)
    return tmp_path / "bucket" / "runs" / "cat"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_name_of_a_run_keeps_both_slashes_from_the_flag_to_the_file(tmp_path):
    config = resolve_paths(parse(Config, ["--run-dir", RUN], "jaxbooth train"))
    assert config.run_dir == RUN
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml").run_dir == RUN
    assert str(RunFolder(as_path(config.run_dir)).samples(3)) == f"{RUN}/samples/step_000003.png"


def test_a_local_run_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(Config(run_dir=Path("runs/a"))).run_dir == str(tmp_path / "runs" / "a")
    assert is_local(as_path("runs/a"))
    assert not is_local(as_path(as_path(RUN)))


def test_an_unknown_kind_of_store_is_refused():
    with pytest.raises(UserError, match=r"ftp://host/run: such URLs are not supported; use a local folder or gs://"):
        as_path("ftp://host/run")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the library is there")
def test_without_the_library_of_the_store_the_extra_is_named():
    with pytest.raises(UserError, match=r"gs://bucket/runs/cat needs .* pip install 'jaxbooth\[gcs\]'"):
        check_reachable(as_path(RUN))


def test_a_run_is_claimed_and_opened_and_anothers_is_refused(store):
    config = Config(run_dir=RUN, seed=1)
    with lock_run(config, SingleProcess(lambda: None)) as run:
        assert names(store) == {"config.yaml"}
    assert open_run(RUN) == (run, config)
    (store / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match="belongs to a run with --seed 1, and this one has 2"), \
            lock_run(Config(run_dir=RUN, seed=2), SingleProcess(lambda: None)):  # fmt: skip
        pass


def test_metrics_and_curves_are_there_after_a_flush_and_lines_of_later_steps_are_dropped(store):
    run = RunFolder(as_path(RUN))
    writer = MetricWriter(run.metrics, run.tensorboard, 0)
    for step in (1, 2, 3):
        writer.log_step(step, {"loss": step / 2})
    writer.log_grid(3, run.samples(3), Image.new("RGB", (8, 8), "red"), {"seed": 1})
    writer.flush()
    assert len(read_metrics(run.metrics)) == 3
    writer.close()
    again = MetricWriter(run.metrics, run.tensorboard, 2)
    again.log_step(3, {"loss": 9.0})
    again.close()
    assert [line["loss"] for line in read_metrics(run.metrics)] == [0.5, 1.0, 9.0]
    assert {name.split("/")[0] for name in names(store)} == {
        "metrics.jsonl",
        "metrics.jsonl.superseded",
        "samples",
        "tensorboard",
        "validation.jsonl",
    }


def test_class_images_are_written_listed_and_read_there(store):
    config = configure((1, 1))
    [folder] = class_folders(config.data, config.subjects, RUN)
    write_png(folder / "class-00000.png", Image.new("RGB", (6, 4), "blue"), {"seed": 1})
    write_json(folder / "manifest.json", {"a": 1})
    (image,) = scan_folder(folder, "a cat", "class").images
    assert str(image.path) == f"{RUN}/prior/class-00000.png"
    assert np.asarray(load_image(image.path).image).mean(axis=(0, 1)).tolist() == [0, 0, 255]
    assert read_json(folder / "manifest.json") == {"a": 1}
    assert names(store) == {"prior/class-00000.png", "prior/manifest.json"}


def test_an_export_is_whole_only_when_all_of_it_is_there_and_replaces_the_former(store):
    run = RunFolder(as_path(RUN))
    for content in ("first", "second"):
        with run.new_export() as fresh:
            assert fresh.name == "cat"
            write_bytes(fresh / "unet" / f"{content}.bin", content.encode())
    assert run.is_exported
    assert names(store) == {"export/unet/second.bin", "exported"}
    with pytest.raises(OSError, match="of the work"), run.new_export():
        raise OSError("of the work")
    assert names(store) == {"export/unet/second.bin", "exported"}
    run.export_mark.unlink()
    assert not run.is_exported


def test_checkpoints_are_saved_read_and_set_aside_there(store):
    run = RunFolder(as_path(RUN))
    state = TrainState(jnp.int32(0), {"unet.a": jnp.arange(40_000.0)}, (), {})
    first = Checkpoints(run.checkpoints, 2)
    for step in (3, 6):
        first.save(state._replace(step=jnp.int32(step)), step, Config())
    first.close()
    assert (store / "checkpoints" / "6" / "commit_success.txt").exists()
    (store / "checkpoints" / "6" / "state" / "manifest.ocdbt").write_bytes(b"garbage")
    second = Checkpoints(run.checkpoints, 2)
    found, step = second.restore(state)
    second.close()
    assert (step, int(found.step)) == (3, 3)
    assert np.array_equal(found.params["unet.a"], state.params["unet.a"])
    assert {path.name for path in (store / "checkpoints").iterdir()} == {"3", "damaged-6"}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_resumed_sampled_and_exported_and_equals_a_local_one(tmp_path):
    def command(*arguments: object) -> str:
        return succeed(jaxbooth(tmp_path, *arguments, code=STORE))

    flags = [*SHORT, "--train.steps"]
    succeed(jaxbooth("train", *flags, 6, "--run-dir", tmp_path / "local" / "cat"))
    command("train", *flags, 3, "--run-dir", RUN)
    assert "resumed at step 3 of 6" in command("train", *flags, 6, "--run-dir", RUN)
    local, there = tmp_path / "local" / "cat", tmp_path / "bucket" / "runs" / "cat"
    sums = [json.loads((run / "checkpoints" / "6" / "sums" / "metadata").read_text()) for run in (local, there)]
    assert sums[0] == sums[1]
    for folder in ("prior", "export", "samples"):
        contents = [
            {name: (run / folder / name).read_bytes() for name in names(run / folder)} for run in (local, there)
        ]
        ends = {"step_000003.png"} if folder == "samples" else set()  # of the command that was asked for three steps
        assert contents[1].keys() - contents[0].keys() == ends
        assert contents[0].items() <= contents[1].items(), folder
    assert "complete at step 6 of 6" in command("train", *flags, 6, "--run-dir", RUN)
    command("export", RUN, "--out", tmp_path / "out")
    assert names(tmp_path / "out") == names(local / "export")
    command("sample", RUN, "--prompt", "a sks cat", "--num", 1, "--steps", 1, "--out", tmp_path / "drawn")
    assert names(tmp_path / "drawn") == {"0-000.png"}
