"""The roofline, worked out by hand for round numbers."""

import pytest

from jaxbooth.console.numbers import format_duration, format_significant
from jaxbooth.plan.hardware import Chip, Topology, find_topology
from jaxbooth.plan.roofline import EFFICIENCY, Roofline, StepCost, expected_run, roofline

CHIP = Chip("round", (), peak_flops=100e12, memory=16e9, bandwidth=1e12, link_bandwidth=50e9)


def cost(flops: float = 0, moved: float = 0, **collectives: float) -> StepCost:
    return StepCost({}, flops, moved, {kind.replace("_", "-"): size for kind, size in collectives.items()})


def test_each_resource_takes_its_work_over_its_peak():
    bound = roofline(cost(2e12, 30e9, all_gather=1e9), CHIP, fsdp=4)
    assert bound == pytest.approx((0.02, 0.03, 0.02))
    assert (bound.bound, bound.seconds) == ("memory", pytest.approx(0.03))


def test_an_all_reduce_sends_everything_twice():
    assert roofline(cost(all_reduce=5e9), CHIP, fsdp=1).interconnect == pytest.approx(0.2)


def test_a_reduce_scatter_sends_as_much_as_the_gather_of_its_result():
    # 4 devices are left with 250 MB each of a 1 GB gradient.
    scattered = roofline(cost(reduce_scatter=0.25e9), CHIP, fsdp=4)
    assert scattered.interconnect == roofline(cost(all_gather=1e9), CHIP, fsdp=4).interconnect == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("times", "bound"),
    [((3, 2, 1), "compute"), ((1, 2, 0), "memory"), ((1, 2, 3), "interconnect"), ((1, 2, None), "memory")],
)
def test_the_slowest_resource_is_the_bound(times, bound):
    assert Roofline(*times).bound == bound


def test_a_run_takes_its_steps_at_the_assumed_share_of_the_roofline():
    two_devices = CHIP._replace(devices_per_chip=2)
    run = expected_run(3600, 12, Topology("two", two_devices, 8, (2, 2), "tpu"), Roofline(0.25, 0.1, 0.0))
    assert EFFICIENCY == 0.5
    assert run.seconds_per_step == 0.5
    assert run.images_per_second == 24  # 12 images a step
    assert run.hours == 0.5
    assert run.chip_hours == 2  # of 4 chips with 2 devices each


def test_a_device_of_unknown_speed_has_no_time():
    cpu = find_topology("cpu:1")
    bound = roofline(cost(1e12, 1e9), cpu.chip, fsdp=1)
    assert bound == (None, None, None)
    assert (bound.bound, bound.seconds) == (None, None)
    assert set(expected_run(1000, 4, cpu, bound)) == {None}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0548, "54.8 ms"), (4.79, "4.79 s"), (97.2, "97.2 s"), (2700, "45 min"), (9720, "2.7 h"), (4.5e6, "1,250 h")],
)
def test_a_time_is_shown_in_a_unit_that_people_read(seconds, shown):
    assert format_duration(seconds) == shown


def test_no_number_is_shown_with_an_exponent():
    assert [format_significant(number) for number in (0.0274, 20.8, 1234.5)] == ["0.0274", "20.8", "1,234"]
