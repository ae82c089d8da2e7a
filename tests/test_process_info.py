"""Which process of how many this one is: from flags, or from what launched it."""

import os

import pytest

from jaxbooth.distributed.process_info import ProcessInfo, find_process
from jaxbooth.errors import UserError

CLUSTER = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR")


@pytest.fixture
def nowhere(monkeypatch):
    """No launcher's environment."""
    for name in list(os.environ):
        if name.startswith(CLUSTER):
            monkeypatch.delenv(name)


def test_a_laptop_is_alone(nowhere):
    assert find_process(None, None, None, 10) is None


def test_slurm_is_recognised(nowhere, monkeypatch):
    values = {"JOB_ID": 4096, "STEP_NODELIST": "node[007-009]", "NTASKS": 3, "PROCID": 2, "LOCALID": 0}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    process = find_process(None, None, None, 10)
    assert process == ProcessInfo("node007:61440", 3, 2, [0])


def test_a_single_task_of_slurm_is_alone(nowhere, monkeypatch):
    values = {"JOB_ID": 4096, "STEP_NODELIST": "node007", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert find_process(None, None, None, 10) is None


def test_flags_describe_a_process():
    process = find_process("[::1]:8476", 2, 1, 10)
    assert process == ProcessInfo("[::1]:8476", 2, 1)
    assert process.address == ("::1", 8476)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((None, 2, 0), "--distributed.coordinator is missing"),
        (("a:1", None, 0), "--distributed.num-processes is missing"),
        (("a:1", 2, None), "--distributed.process-id is missing"),
        (("a", 2, 0), "is not HOST:PORT"),
        (("a:99999", 2, 0), "is not HOST:PORT"),
        (("a:1", 2, 2), "they are numbered 0 to 1"),
    ],
)
def test_half_a_description_is_an_error(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        find_process(*flags, 10)
