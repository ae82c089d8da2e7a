"""Names of hardware: what they stand for, and what happens to a name that stands for nothing."""

import inspect

import jax
import pytest

from jaxbooth.cli.plan import PlanArguments
from jaxbooth.console.numbers import GIB
from jaxbooth.errors import UserError
from jaxbooth.plan.hardware import GPUS, TPUS, find_chip, find_topology


@pytest.mark.parametrize(
    ("name", "chips", "devices", "host", "gib"),
    [
        ("v5e:1x1", 1, 1, (1, 1, 1), 15.75),
        ("v5e:2x4", 8, 8, (2, 4, 1), 15.75),
        ("v5e:4x4", 16, 16, (2, 2, 1), 15.75),
        ("v6e:16x16", 256, 256, (2, 2, 1), 31.24),
        ("v5p:2x2x1", 4, 4, (2, 2, 1), 95.73),
        ("v4:2x2x2", 8, 8, (2, 2, 1), 30.75),
    ],
)
def test_a_tpu_slice_has_its_chips_its_hosts_and_its_memory(name, chips, devices, host, gib):
    topology = find_topology(name)
    assert (topology.chips, topology.devices, topology.host_bounds) == (chips, devices, host)
    assert topology.chip.memory == gib * GIB
    assert topology.platform == "tpu"


@pytest.mark.parametrize(("name", "chips"), [("v2:2x2", 4), ("v3:2x2", 4), ("tpu7x:2x2x1", 4)])
def test_some_chips_are_two_devices(name, chips):
    topology = find_topology(name)
    assert (topology.chips, topology.devices) == (chips, 2 * chips)


def test_a_gpu_keeps_8_percent_of_its_memory_to_itself():
    topology = find_topology("A100-80GB:8")
    assert (topology.devices, topology.chips, topology.platform) == (8, 8, "gpu")
    assert topology.chip.memory == pytest.approx(80 * GIB * 0.92)


def test_the_cpu_is_divided_among_devices_that_share_it():
    whole, part = find_topology("cpu:1").chip.memory, find_topology("cpu:4").chip.memory
    assert whole is not None
    assert part == whole / 4


def test_local_is_what_jax_has_here():
    topology = find_topology("local")
    assert topology.is_local
    assert (topology.devices, topology.platform) == (len(jax.devices()), "cpu")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 4090", "rtx4090:1"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER:2", "rtx4070tisuper:2"),
        ("3060", "rtx3060:1"),
        ("a100-80GB:08", "a100-80gb:8"),
        ("H100-80GB:8", "h100:8"),
        ("Tesla T4", "t4:1"),
        ("V100-16gb", "v100:1"),
        ("l40s", "l40s:1"),
        ("b200:8", "b200:8"),
        ("V5E:2x4", "v5e:2x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v6e-8", "v6e:2x4"),
        ("v6e:1", "v6e:1x1"),
        ("v5p:4", "v5p:2x2x1"),  # chips
        ("v3:8", "v3:2x4"),
        ("v4-8", "v4:2x2x1"),  # cores, of which a chip has two
        ("v5p-16", "v5p:2x2x2"),
    ],
)
def test_devices_have_the_names_that_people_type(typed, name):
    assert find_topology(typed).name == name


@pytest.mark.parametrize("card", ["rtx3060", "rtx3090ti", "rtx4060ti", "rtx4080super", "rtx5060", "rtx5090"])
def test_geforce_cards_of_three_generations_are_known(card):
    chip = find_topology(card).chip
    assert chip.peak_flops is not None
    assert 2e13 < chip.peak_flops < 3e14
    assert find_chip(chip.device_kinds[0]) is chip


def test_the_help_lists_every_device_name():
    described = PlanArguments.__doc__ + inspect.getsource(PlanArguments)
    names = {chip.name for chip in (*TPUS, *GPUS) if not chip.name.startswith("rtx")}
    assert [name for name in sorted(names) if name not in described] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a100", "did you mean a100-40gb or a100-80gb"),
        ("rtx4099", "did you mean rtx4090"),
        ("titan", "`jaxbooth plan --help` lists all names"),
        ("", "`jaxbooth plan --help` lists all names"),
        ("v5e", "v5e comes as :1x1, :2x2, :2x4"),
        ("v5e:3x3", "v5e comes as :1x1, :2x2, :2x4"),
        ("v6e:2", "v6e comes as :1x1, :2x2, :2x4"),
        ("v5p:4x4", "v5p comes as :2x2x1"),
        ("v5litepod-7", "v5e comes as v5e-1, v5e-4, v5e-8"),
        ("h100:0", "write a number from 1 to 4096 after h100:"),
        ("h100:" + "9" * 30, "write a number from 1 to 4096 after h100:"),
        ("cpu:many", "write a number from 1 to 4096 after cpu:"),
        ("local:2", "leave :2 out"),
    ],
)
def test_a_name_that_does_not_exist_is_told_in_a_short_sentence(name, said):
    with pytest.raises(UserError) as raised:
        find_topology(name)
    message = str(raised.value)
    assert message.startswith(f"--topology {name}")
    assert said in message
    assert len(message) < 250


def test_a_platform_that_jax_does_not_have_is_named():
    with pytest.raises(UserError, match="JAX finds no gpu here; name one, such as a100-80gb:1"):
        find_topology("gpu")


def test_a_device_is_recognised_by_the_longest_name():
    names = {
        kind: chip.name
        for kind in ("TPU v5 lite", "TPU v5", "NVIDIA H100 80GB HBM3", "NVIDIA A10G", "NVIDIA L40S")
        if (chip := find_chip(kind))
    }
    assert names == {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A10G": "a10g",
        "NVIDIA L40S": "l40s",
    }
    assert find_chip("NVIDIA A100X") is None
    assert find_chip("Abacus") is None
