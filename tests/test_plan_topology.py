"""Names of hardware: what they stand for, and what happens to a name that stands for nothing."""

import jax
import pytest

from jaxbooth.errors import UserError
from jaxbooth.plan.chips import GIB, chip_of
from jaxbooth.plan.topology import find_topology


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
    assert topology.is_here
    assert (topology.devices, topology.platform) == (len(jax.devices()), "cpu")


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:3x3", "v5p:4x4", "h100", "h100:0", "local:2", "", "cpu:many"])
def test_a_name_that_does_not_exist_lists_those_that_do(name):
    with pytest.raises(UserError) as raised:
        find_topology(name)
    message = str(raised.value)
    assert message.startswith(f"--topology {name} does not exist; known are ")
    known = ("v5e", "v6e", ":4x4", "v5p", ":2x2x1", "a100-80gb", "cpu:N", "local")
    assert [part for part in known if part not in message] == []


def test_a_platform_that_jax_does_not_have_is_named():
    with pytest.raises(UserError, match="JAX finds no gpu here; name one, such as a100-80gb:1"):
        find_topology("gpu")


def test_a_device_is_recognised_by_the_longest_name():
    names = {kind: chip.name for kind in ("TPU v5 lite", "TPU v5", "NVIDIA H100 80GB HBM3") if (chip := chip_of(kind))}
    assert names == {"TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA H100 80GB HBM3": "h100"}
    assert chip_of("Abacus") is None
