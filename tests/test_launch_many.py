"""scripts/launch/slurm-many.sbatch: an array of shares of a manifest, as far as it can be run without a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_launch_scripts import FOLDER, Programs, make_run


@pytest.fixture
def programs(tmp_path) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Programs(folder)


def make_root(folder: Path, done: dict[str, int]) -> Path:
    """Makes what runs of 4 steps leave, each after some of them, in the folder of a program."""
    for name, steps in done.items():
        make_run(folder / name, steps, exported=steps == 4)
    (folder / "manifest.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in done))
    return folder


@pytest.mark.parametrize(("shard", "code"), [("1/2", 0), ("2/2", 143), ("1/1", 143), ("3/3", 0)])
def test_a_share_is_complete_with_all_of_its_subjects(tmp_path, shard, code):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 2, "jar": 4})
    assert subprocess.run([sys.executable, FOLDER / "complete.py", root, shard]).returncode == code


def test_a_root_that_has_not_begun_is_not_complete(tmp_path):
    assert subprocess.run([sys.executable, FOLDER / "complete.py", tmp_path / "root", "1/2"]).returncode == 143


def job(root: Path, **settings: str) -> dict[str, str]:
    return {
        "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_MIN": "1",
        "LAUNCH_DIR": str(FOLDER), "RUN_DIR": str(root), "MANIFEST": "subjects.yaml",
    } | settings  # fmt: skip


def test_each_task_trains_its_share(programs, tmp_path):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 4})
    programs.add("jaxbooth", "#!/usr/bin/env bash\n")
    programs.record("srun")
    found = programs.run("slurm-many.sbatch", "sd15-lora", **job(root))
    assert found.returncode == 0, found.stderr
    command = ["jaxbooth", "train-many", "subjects.yaml", "sd15-lora", "--run-dir", str(root), "--shard", "2/2"]
    assert programs.calls() == [["--cpus-per-task=1", *command]]


@pytest.mark.parametrize(("code", "cup", "requeued", "expected"), [(0, 4, False, 0), (0, 2, True, 0), (1, 2, False, 1)])
def test_a_task_goes_back_into_the_queue_only_if_it_saved_and_is_not_complete(
    programs, tmp_path, code, cup, requeued, expected
):
    root = make_root(tmp_path / "root", {"mug": 2, "cup": cup})
    programs.add("jaxbooth", "#!/usr/bin/env bash\n")
    programs.add("srun", f"#!/usr/bin/env bash\nexit {code}\n")
    programs.record("scontrol")
    found = programs.run("slurm-many.sbatch", "sd15-lora", **job(root))
    assert found.returncode == expected, found.stderr
    assert programs.calls() == ([["requeue", "7_2"]] if requeued else [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MANIFEST": ""}, "MANIFEST is not set; it names the subjects"),
        ({"SLURM_ARRAY_TASK_ID": ""}, "this file is for an array"),
        ({"SLURM_ARRAY_TASK_MIN": "0"}, "the array begins at 0; shares are counted from 1."),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(programs, tmp_path, settings, message):
    found = programs.run("slurm-many.sbatch", **job(tmp_path, **settings))
    assert found.returncode == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
