"""`train-many`: runs of many subjects side by side, as each would be alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.many.root import class_folder, class_name
from jaxbooth.many.train import train_many
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.status import read_status
from jaxbooth.runs.train import train

STEPS = {"mug": 6, "cup": 4, "jar": 6, "empty": 6, "torn": 6}
PROGRAM = {
    "lora": {"rank": 2},
    "train": {"batch_size": 1, "steps": 6, "steps_per_dispatch": 2, "checkpoint_every": 4, "learning_rate": 1e-3,
              "eps": 1e-3},
    "prior": {"steps": 2},
    "data": {"num_class_images": 2, "resolution": 32, "class_prompt": "a cup"},
    "validation": {"every": 100, "images_per_prompt": 1, "steps": 2, "prompts": ["a sks cup"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of photos for each subject; one is empty, and one has a file that is cut short."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate(STEPS):
        (folder / name).mkdir()
        for index in range(0 if name == "empty" else 2 + number % 2):
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name / f"{index}.png")
    torn = folder / "torn" / "0.png"
    torn.write_bytes(torn.read_bytes()[:900])
    return folder


def write_manifest(path: Path, photos: Path, names=tuple(STEPS), **changes) -> Path:
    entries = [
        {"name": name, "instance_dir": str(photos / name), "instance_prompt": "a sks cup", "steps": STEPS[name]}
        | ({"seed": 9} if name == "jar" else {}) | changes.get(name, {})
        for name in names
    ]  # fmt: skip
    path.write_text(yaml.safe_dump(entries))
    return path


@pytest.fixture(scope="module")
def root(micro_model, photos, tmp_path_factory) -> Path:
    """Five subjects in two slots, of which two cannot be trained."""
    folder = tmp_path_factory.mktemp("many")
    manifest = write_manifest(folder / "subjects.yaml", photos)
    with pytest.raises(RunFailure, match=r"3 of 5 done, 2 failed: empty \(.*\), torn \(.*\)"):
        train_many(manifest, None, 2, model=str(micro_model), run_dir=str(folder / "runs"), **PROGRAM)
    return folder / "runs"


def adapters(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "export" / "pytorch_lora_weights.safetensors")


def test_a_subject_trains_as_it_does_alone(root, tmp_path):
    config = load_config(root / "jar" / "config.yaml", {"run_dir": str(tmp_path / "jar")})
    train(config)
    alone, among = (read_metrics(run / "metrics.jsonl") for run in (tmp_path / "jar", root / "jar"))
    assert [line["step"] for line in among] == list(range(1, 7))
    np.testing.assert_allclose([line["loss"] for line in among], [line["loss"] for line in alone], rtol=2e-5)
    expected, found = adapters(tmp_path / "jar"), adapters(root / "jar")
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for name, value in expected.items() if "lora_B" in name)
    assert max(np.abs(found[name] - value).max() for name, value in expected.items()) < 1e-3 * largest


def test_its_folder_is_that_of_any_run(root, tmp_path):
    config = load_config(root / "cup" / "config.yaml", {"run_dir": str(tmp_path / "cup")})
    train(config)
    depth = {"checkpoints": 1, "tensorboard": 0}  # below which names are random
    names = []
    for run in (root / "cup", tmp_path / "cup"):
        paths = [path.relative_to(run).parts for path in run.rglob("*")]
        names.append({parts for parts in paths if len(parts) <= 1 + depth.get(parts[0], 9)})
    assert names[0] == names[1]
    assert {("config.yaml",), ("checkpoints", "4"), ("samples", "step_000004.png")} < names[0]


def test_the_status_says_how_each_subject_ended(root):
    statuses = read_status(root / "status.jsonl")
    assert {name: status.state for name, status in statuses.items()} == {
        "mug": "done", "cup": "done", "jar": "done", "empty": "failed", "torn": "failed",
    }  # fmt: skip
    assert "holds no image" in (statuses["empty"].error or "")
    assert "0.png" in (statuses["torn"].error or "")


def test_subjects_of_one_class_share_its_images(root):
    [folder] = (root / "class_images").iterdir()
    assert folder.name.startswith("a-cup-")
    assert len(list(folder.glob("*.png"))) == 2
    assert not (root / "mug" / "prior").exists()


def test_a_subject_without_class_images_has_no_folder_for_them(tmp_path):
    folders = {
        weight: class_folder(
            Config.model_validate({"data": {"class_prompt": "a cup"}, "prior": {"weight": weight}}),
            ProgramFolder(tmp_path),
        )
        for weight in (0, 1)
    }
    assert folders == {0: None, 1: tmp_path / "class_images" / class_name("a cup")}


def test_the_same_command_trains_only_what_is_not_done(root, photos, micro_model, tmp_path):
    again = tmp_path / "runs"
    shutil.copytree(root, again)
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (40, 40), "red").save(photos / "empty" / "0.png")
    try:
        manifest = write_manifest(tmp_path / "subjects.yaml", photos)
        before = {name: (again / name / "metrics.jsonl").stat().st_mtime_ns for name in ("mug", "cup", "jar")}
        with pytest.raises(RunFailure, match=r"4 of 5 done, 1 failed: torn"):
            train_many(manifest, None, 2, model=str(micro_model), run_dir=str(again), **PROGRAM)
        assert {name: (again / name / "metrics.jsonl").stat().st_mtime_ns for name in before} == before
    finally:
        (photos / "empty" / "0.png").unlink()


def test_a_subject_that_failed_may_change(root, photos, micro_model, tmp_path):
    again = tmp_path / "runs"
    shutil.copytree(root, again)
    manifest = write_manifest(tmp_path / "subjects.yaml", photos, ("mug", "cup", "jar", "torn"), torn={"seed": 4})
    with pytest.raises(RunFailure, match=r"3 of 4 done, 1 failed: torn"):
        train_many(manifest, None, 2, model=str(micro_model), run_dir=str(again), **PROGRAM)


@pytest.mark.parametrize(
    ("names", "changes", "settings", "problem"),
    [
        (("mug",), {}, {}, "cup is no longer there"),
        (tuple(STEPS), {"mug": {"seed": 4}}, {}, "manifest.*mug"),
        (tuple(STEPS), {}, {"lora": {"rank": 3}}, "--lora.rank"),
        (tuple(STEPS), {}, {"lora": {"rank": 2, "kind": "dora"}}, "--lora.kind dora"),
        (tuple(STEPS), {}, {"lora": {"rank": 2, "kind": "loha"}}, "--lora.kind loha"),
        (tuple(STEPS), {}, {"lora": {}}, "set --lora.rank"),
    ],
    ids=["fewer", "other seed", "other rank", "dora", "loha", "full"],
)  # fmt: skip
def test_a_root_belongs_to_one_program_and_manifest(
    root, photos, micro_model, tmp_path, names, changes, settings, problem
):
    manifest = write_manifest(tmp_path / "subjects.yaml", photos, names, **changes)
    with pytest.raises(UserError, match=problem):
        train_many(manifest, None, 2, model=str(micro_model), run_dir=str(root), **PROGRAM | settings)
