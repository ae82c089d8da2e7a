"""How many subjects fit side by side, by the plan."""

import pytest

from jaxbooth.config.load import load_config
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.fit import resolve_remat
from jaxbooth.plan.hardware import find_topology
from jaxbooth.plan.plan import make_plan
from jaxbooth.plan.subjects import plan_subjects, slot_estimate

RANK = 8


@pytest.fixture(scope="module")
def planned():
    """The demo's LoRA of one instance and one class row, on a TPU slice of four chips."""
    topology = find_topology("v5e:2x2")
    config = load_config("demo", {"lora.rank": RANK, "train.batch_size": 1, "train.steps": 100})
    config, base = abstract_base(config, topology.platform)
    config, estimated = resolve_remat(config, base, topology)
    return config, base, estimated


def test_adapters_multiply_and_the_base_model_does_not(planned):
    slots = slot_estimate(*planned)
    one, eight = slots.at(4).memory, slots.at(32).memory  # one and eight on each of four chips
    assert eight["frozen"] == one["frozen"]
    assert eight["parameters"] == 8 * one["parameters"] == 8 * slots.parameters
    assert eight["optimizer"] == 8 * one["optimizer"]
    assert slots.parameters < slots.optimizer < 3 * slots.parameters  # AdamW has two moments


def test_the_base_models_weights_are_read_once_a_step(planned):
    slots = slot_estimate(*planned)
    assert slots.at(32).bytes_accessed < 8 * slots.at(4).bytes_accessed
    assert slots.at(32).flops == pytest.approx(8 * slots.at(4).flops, rel=0.35)


def test_as_many_fit_as_memory_and_subjects_allow(planned):
    slots = slot_estimate(*planned)
    assert slots.largest(10) == 12  # three on each chip
    most = slots.largest(10**6)
    assert most % 4 == 0
    assert slots.fits(most)
    assert not slots.fits(most + 4) or most == 4 * 4096


def test_all_subjects_take_as_many_rounds_as_the_slots_make(planned):
    plan = plan_subjects(*planned, subjects=1000)
    rounds = -(-1000 // plan.slots)
    assert plan.hours == pytest.approx(rounds * 100 * plan.seconds_per_step / 3600)
    assert plan.chip_hours == pytest.approx(4 * plan.hours)
    assert plan.per_hour == pytest.approx(1000 / plan.hours)


def test_whole_components_are_refused():
    with pytest.raises(UserError, match=r"--subjects: .* set --lora.rank"):
        make_plan(load_config("demo"), find_topology("v5e:1"), subjects=10)
