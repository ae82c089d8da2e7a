"""scripts/launch: the launchers for clusters, as far as they can be run without one."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

from tests.launchers import FOLDER, Programs, make_run

SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
JOBSET = {
    "NAME": "dog",
    "IMAGE": "registry/jaxbooth:1",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "RUN_DIR": "gs://bucket/runs/dog",
}
SLICE = {"NAME": "dog", "ACCELERATOR_TYPE": "v5litepod-16"}


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """Programs that no cluster stands behind."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return Programs(folder)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_written_well(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    # Of the test extra; the environment's programs are not on the path of `.venv/bin/pytest`.
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([shellcheck, "-x", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "script", [path.name for path in SCRIPTS if not path.name.startswith("lib") and path.suffix != ".sbatch"]
)
def test_help_names_every_variable(programs, script):
    found = programs.run(script, "--help")
    assert found.returncode == 0
    assert found.stdout.startswith("usage: ")


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "message"),
    [
        ("gke-xpk.sh", [], {"PROJECT": "p"}, "CLUSTER is not set; it names the GKE cluster."),
        ("gke-jobset.sh", [], {**JOBSET, "RUN_DIR": ""}, "RUN_DIR is not set"),
        ("gke-jobset.sh", [], {**JOBSET, "RUN_DIR": "runs/dog"}, "RUN_DIR is 'runs/dog'; the hosts share no disk"),
        ("gke-jobset.sh", [], {**JOBSET, "TOPOLOGY": "16"}, "TOPOLOGY is '16'; it looks like 4x4 or 2x2x2."),
        ("gke-jobset.sh", [], {**JOBSET, "TOPOLOGY": "3x3"}, "9 chips of 3x3 are not hosts of CHIPS_PER_HOST=4."),
        ("tpu-vm.sh", ["fly"], SLICE, "'fly' is no command; --help lists them."),
        ("tpu-vm.sh", ["create"], {"NAME": "dog"}, "ACCELERATOR_TYPE is not set"),
        ("tpu-vm.sh", ["create"], {**SLICE, "ACCELERATOR_TYPE": "tpu7x-16"}, "TPU7x and newer need GKE"),
        ("tpu-vm.sh", ["train", "sd15"], SLICE, "RUN_DIR is not set"),
        ("slurm.sbatch", [], {"LAUNCH_DIR": str(FOLDER)}, "this file is for sbatch"),
        ("slurm.sbatch", [], {"SLURM_JOB_ID": "7", "LAUNCH_DIR": str(FOLDER)}, "RUN_DIR is not set"),
        ("slurm.sbatch", [], {"SLURM_JOB_ID": "7", "LAUNCH_DIR": "nowhere"}, "nowhere is not the launchers' folder"),
        ("pod.sh", ["sd15"], {}, "RUN_DIR is not set; it names the run folder that all hosts share."),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(programs, script, arguments, settings, message):
    programs.record("gcloud")
    found = programs.run(script, *arguments, **settings)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_jobset_restarts_all_hosts_and_leaves_time_to_save(programs):
    flags = ["sd15", "--data.instance-prompt", 'a "photo" of sks dog']
    jobset = yaml.safe_load(programs.run("gke-jobset.sh", "--print", *flags, **JOBSET, NUM_SLICES="2").stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 4, 4, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == flags
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    settings = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert settings["RUN_DIR"] == "gs://bucket/runs/dog"
    assert settings["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/jax-cache"


def test_a_slice_of_several_hosts_has_a_node_pool_of_its_own(programs):
    place = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    for topology, expected in {"4x4": place, "2x2": None}.items():
        printed = programs.run("gke-jobset.sh", "--print", **JOBSET | {"TOPOLOGY": topology}).stdout
        assert yaml.safe_load(printed)["metadata"].get("annotations") == expected


def test_the_jobset_takes_other_nodes_when_spot_is_off(programs):
    printed = programs.run("gke-jobset.sh", "--print", **JOBSET, SPOT="0").stdout
    assert yaml.safe_load(printed)["spec"]["replicatedJobs"]
    assert "gke-spot" not in printed


def test_xpk_gets_one_quoted_command(programs):
    programs.record("xpk")
    place = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "TPU_TYPE": "v6e-16"}
    found = programs.run("gke-xpk.sh", "sd15", "--data.instance-prompt", "a photo", **place, **JOBSET)
    assert found.returncode == 0, found.stderr
    (call,) = programs.calls()
    assert call[-1] == r"exec /opt/jaxbooth/scripts/launch/pod.sh sd15 --data.instance-prompt a\ photo"
    assert call[call.index("--tpu-type") + 1] == "v6e-16"
    assert call[call.index("--restart-on-exit-codes") + 1] == "1"


@pytest.mark.parametrize(
    ("answer", "code", "verbs"),
    [
        ("NOT_FOUND: no such request", 1, ["describe", "create"]),
        ("ACTIVE\n", 0, ["describe"]),
        ("SUSPENDED\n", 0, ["describe", "delete", "create"]),
    ],
)
def test_a_slice_is_requested_once_and_again_after_preemption(programs, answer, code, verbs):
    programs.record("gcloud", "describe", answer, code)
    found = programs.run("tpu-vm.sh", "create", **SLICE)
    assert found.returncode == 0, found.stderr
    assert [call[3] for call in programs.calls()] == verbs
    if "create" in verbs:
        assert "--spot" in programs.calls()[-1]
        assert "v2-alpha-tpuv5-lite" in programs.calls()[-1]
        assert "v5litepod-16 has 16 chips: 16 chip-hours an hour" in found.stdout


def test_other_errors_of_the_request_are_shown_and_nothing_is_created(programs):
    programs.record("gcloud", "describe", "PERMISSION_DENIED: not yours", 1)
    found = programs.run("tpu-vm.sh", "create", **SLICE)
    assert found.returncode == 1
    assert "PERMISSION_DENIED: not yours" in found.stderr
    assert [call[3] for call in programs.calls()] == ["describe"]


def test_waiting_ends_when_the_request_has_failed(programs):
    programs.record("gcloud", "describe", "FAILED\n")
    found = programs.run("tpu-vm.sh", "wait", **SLICE)
    assert found.returncode == 1
    assert "dog is FAILED; run: tpu-vm.sh create" in found.stderr


def test_every_host_of_a_slice_gets_the_same_quoted_training(programs):
    programs.record("gcloud")
    flags = ["sd15", "--data.instance-prompt", "a dog's photo"]
    found = programs.run("tpu-vm.sh", "train", *flags, RUN_DIR="gs://bucket/runs/dog", **SLICE)
    assert found.returncode == 0, found.stderr
    (call,) = programs.calls()
    assert call[call.index("--worker") + 1] == "all"
    command = call[call.index("--command") + 1]
    assert command.endswith(r"scripts/launch/pod.sh sd15 --data.instance-prompt a\ dog\'s\ photo")
    assert "--setenv=RUN_DIR=gs://bucket/runs/dog" in command
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


@pytest.mark.parametrize(
    ("done", "exported", "export", "code"),
    [(4, True, True, 0), (4, False, False, 0), (4, False, True, 143), (2, False, True, 143), (2, True, True, 143)],
)
def test_a_run_is_complete_with_its_last_step_and_its_export(tmp_path, done, exported, export, code):
    run = make_run(tmp_path / "run", done, exported, export)
    assert subprocess.run([sys.executable, FOLDER / "complete.py", run]).returncode == code


def test_a_run_that_has_not_begun_is_not_complete(tmp_path):
    assert subprocess.run([sys.executable, FOLDER / "complete.py", tmp_path / "run"]).returncode == 143


def test_images_are_copied_with_their_folders(tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    (photos / "a.jpg").write_bytes(b"a")
    (photos / "more" / "b.jpg").write_bytes(b"b")
    command = [sys.executable, FOLDER / "fetch.py", photos, tmp_path / "copy"]
    for _ in range(2):
        assert subprocess.run(command).returncode == 0
    assert (tmp_path / "copy" / "more" / "b.jpg").read_bytes() == b"b"
    empty = subprocess.run([*command[:2], tmp_path / "none", tmp_path / "copy"], capture_output=True, text=True)
    assert empty.returncode == 2
    assert "holds no files" in empty.stderr


@pytest.mark.parametrize(("done", "code"), [(4, 0), (2, 143)])
def test_a_pod_tells_stopped_from_finished(programs, tmp_path, done, code):
    run = make_run(tmp_path / "run", done, exported=done == 4)
    programs.record("jaxbooth")
    found = programs.run("pod.sh", "sd15", "--train.steps", "4", RUN_DIR=str(run))
    assert found.returncode == code, found.stderr
    assert programs.calls() == [["train", "sd15", "--train.steps", "4", "--run-dir", str(run)]]


def test_a_pod_keeps_the_exit_code_of_refused_input(programs, tmp_path):
    programs.add("jaxbooth", "#!/usr/bin/env bash\nexit 2\n")
    assert programs.run("pod.sh", RUN_DIR=str(make_run(tmp_path / "run", 4, exported=True))).returncode == 2


def test_a_pod_passes_sigterm_on_and_waits_for_the_save(programs, tmp_path):
    run = make_run(tmp_path / "run", 2, exported=False)
    programs.add(
        "jaxbooth",
        '#!/usr/bin/env bash\ntrap "echo saved; exit 0" TERM\necho up\nfor _ in {1..300}; do sleep 0.1; done\n',
    )
    env = os.environ | {"PATH": f"{programs.folder}:{os.environ['PATH']}", "RUN_DIR": str(run)}
    with subprocess.Popen([FOLDER / "pod.sh"], env=env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        start = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "saved\n"
        running.stdout.read()
    assert running.returncode == 143
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("code", "done", "restarts", "requeued", "expected"),
    [(0, 4, "0", False, 0), (0, 2, "0", True, 0), (1, 2, "0", False, 1), (0, 2, "50", False, 2)],
)
def test_slurm_requeues_only_what_was_saved_and_is_not_complete(
    programs, tmp_path, code, done, restarts, requeued, expected
):
    run = make_run(tmp_path / "run", done, exported=done == 4)
    programs.add("jaxbooth", "#!/usr/bin/env bash\n")
    programs.add("srun", f"#!/usr/bin/env bash\nexit {code}\n")
    programs.record("scontrol")
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts, "LAUNCH_DIR": str(FOLDER), "RUN_DIR": str(run)}
    found = programs.run("slurm.sbatch", "sd15", **job)
    assert found.returncode == expected, found.stderr
    assert programs.calls() == ([["requeue", "7"]] if requeued else [])
