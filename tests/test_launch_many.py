"""scripts/launch: shares of a manifest on clusters, as far as they can be run without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import environment
from tests.launchers import FOLDER, Programs, make_run
from tests.processes import free_port
from tests.test_launch_scripts import JOBSET
from tests.test_many_processes import FLAGS, photos, write_manifest

__all__ = ["photos"]  # a fixture

MANY = JOBSET | {
    "NAME": "kitchen", "RUN_DIR": "/shared/kitchen", "MANIFEST": "/shared/subjects.yaml", "VOLUME_CLAIM": "runs",
    "NUM_SLICES": "2",
}  # fmt: skip


@pytest.fixture
def programs(tmp_path) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Programs(folder)


def make_root(folder: Path, done: dict[str, int], states: dict[str, str] | None = None) -> Path:
    """Makes what runs of 4 steps leave, each after some of them, in the folder of a program whose log has `states`."""
    for name, steps in done.items():
        make_run(folder / name, steps, exported=steps == 4)
    (folder / "manifest.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in done))
    lines = [json.dumps({"name": name, "state": state}) for name, state in (states or {}).items()]
    (folder / "status.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(("shard", "code"), [("1/2", 0), ("2/2", 143), ("1/1", 143), ("3/3", 0)])
def test_a_share_is_complete_with_all_of_its_subjects(tmp_path, shard, code):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 2, "jar": 4})
    assert subprocess.run([sys.executable, FOLDER / "complete.py", root, shard]).returncode == code


def test_a_root_that_has_not_begun_is_not_complete(tmp_path):
    assert subprocess.run([sys.executable, FOLDER / "complete.py", tmp_path / "root", "1/2"]).returncode == 143


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ({"cup": "failed"}, 3),
        ({"cup": "running"}, 143),
        ({"mug": "failed"}, 143),
        ({"cup": "failed", "mug": "done"}, 3),
    ],
)
def test_a_share_whose_other_subjects_have_failed_is_not_to_be_continued(tmp_path, log, code):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 2}, log)
    assert subprocess.run([sys.executable, FOLDER / "complete.py", root, "1/1"]).returncode == code


def test_a_subject_that_failed_and_is_trained_again_has_not_failed(tmp_path):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 2}, {"cup": "failed"})
    with (root / "status.jsonl").open("a") as log:
        log.write('\n{"name": "cup", "state": "preparing"}\n{"name": "c')
    assert subprocess.run([sys.executable, FOLDER / "complete.py", root, "1/1"]).returncode == 143


@pytest.mark.parametrize(
    ("ended", "cup", "state", "code"),
    [
        (0, 4, "done", 0),
        (0, 2, "running", 143),
        (1, 2, "failed", 3),
        (1, 2, "running", 1),  # it did not say why: a process was lost
        (2, 2, "running", 2),
    ],
)
def test_a_pod_trains_its_share_and_says_whether_to_start_it_again(programs, tmp_path, ended, cup, state, code):
    root = make_root(tmp_path / "root", {"mug": 2, "cup": cup}, {"cup": state})
    programs.add("jaxbooth", f'#!/usr/bin/env bash\necho "$@"\nexit {ended}\n')
    found = programs.run("pod.sh", "sd15-lora", RUN_DIR=str(root), MANIFEST="subjects.yaml", SHARD="2/2")
    assert found.returncode == code, found.stderr
    assert found.stdout.splitlines()[0] == f"train-many subjects.yaml sd15-lora --run-dir {root} --shard 2/2"


@pytest.mark.slow
def test_all_pods_of_a_slice_say_that_only_failed_subjects_are_left(programs, micro_model, photos, tmp_path):
    programs.add("jaxbooth", f'#!/usr/bin/env bash\nexec {sys.executable} -m jaxbooth "$@"\n')
    manifest = write_manifest(tmp_path / "subjects.yaml", photos, ("mug", "empty"))
    env = environment() | {
        "PATH": f"{programs.folder}:{os.environ['PATH']}", "RUN_DIR": str(tmp_path / "root"), "MANIFEST": str(manifest),
    }  # fmt: skip
    group = ["--distributed.coordinator", f"localhost:{free_port()}", "--distributed.num-processes", 2]
    pods = [
        subprocess.Popen(
            list(
                map(
                    str, [FOLDER / "pod.sh", "--model", micro_model, *FLAGS, *group, "--distributed.process-id", number]
                )
            ),
            env=env,
        )
        for number in range(2)
    ]
    assert [pod.wait(timeout=600) for pod in pods] == [3, 3]


def test_each_slice_is_a_jobset_that_trains_its_share_on_the_volume(programs):
    found = programs.run("gke-many.sh", "--print", "sd15-lora", "--slots", "8", **MANY)
    assert found.returncode == 0, found.stderr
    jobsets = list(yaml.safe_load_all(found.stdout))
    assert [jobset["metadata"]["name"] for jobset in jobsets] == ["kitchen-1", "kitchen-2"]
    for number, jobset in enumerate(jobsets, 1):
        (replicated,) = jobset["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        assert (replicated["replicas"], job["parallelism"]) == (1, 4)  # one program: the four hosts of a slice
        pod = job["template"]["spec"]
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "runs"}}]
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert container["args"] == ["sd15-lora", "--slots", "8"]
        settings = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert settings["MANIFEST"] == "/shared/subjects.yaml"
        assert settings["SHARD"] == f"{number}/2"
        assert settings["RUN_DIR"] == "/shared/kitchen"
        assert settings["JAX_COMPILATION_CACHE_DIR"] == "/shared/jax-cache"


def test_all_jobsets_are_applied_at_once_and_have_one_label(programs):
    programs.add("kubectl", f'#!/usr/bin/env bash\n[[ "$*" == "apply -f -" ]] && cat >"{programs.folder}/applied"\n')
    found = programs.run("gke-many.sh", "sd15-lora", **MANY)
    assert found.returncode == 0, found.stderr
    jobsets = list(yaml.safe_load_all((programs.folder / "applied").read_text()))
    assert [jobset["metadata"]["labels"]["app.kubernetes.io/part-of"] for jobset in jobsets] == ["kitchen", "kitchen"]
    assert "32 chips: as many chip-hours an hour" in found.stdout
    assert "kubectl delete jobset -l app.kubernetes.io/part-of=kitchen" in found.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VOLUME_CLAIM": ""}, "VOLUME_CLAIM is not set; it names the PersistentVolumeClaim"),
        ({"RUN_DIR": "gs://bucket/kitchen"}, "RUN_DIR is 'gs://bucket/kitchen'; all slices share MOUNT=/shared"),
        ({"MANIFEST": "subjects.yaml"}, "MANIFEST is 'subjects.yaml'; it must be below MOUNT=/shared"),
        ({"MANIFEST": "photos/subjects.yaml"}, "or in photos/ with PHOTOS set."),
        ({"NUM_SLICES": "0"}, "NUM_SLICES is '0'; it must be a positive number."),
    ],
)
def test_what_the_slices_miss_is_said_in_one_sentence(programs, settings, message):
    found = programs.run("gke-many.sh", "--print", **MANY | settings)
    assert found.returncode == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


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
    assert programs.calls() == [["--kill-on-bad-exit=1", "--gpu-bind=none", "--cpus-per-task=1", *command]]


@pytest.mark.parametrize(("nodes", "tasks", "refused"), [(1, 1, False), (2, 16, False), (2, 1, True), (2, 2, True)])
def test_a_job_of_several_nodes_has_a_task_for_each_gpu(programs, tmp_path, nodes, tasks, refused):
    root = make_root(tmp_path / "root", {"mug": 4, "cup": 4})
    programs.add("jaxbooth", "#!/usr/bin/env bash\n")
    programs.record("srun")
    sizes = {"SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(tasks), "SLURM_GPUS_ON_NODE": "8"}
    found = programs.run("slurm-many.sbatch", **job(root, **sizes))
    assert found.returncode == (2 if refused else 0), found.stderr
    assert ("--ntasks=16 for all 16 GPUs" in found.stderr) == refused


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
