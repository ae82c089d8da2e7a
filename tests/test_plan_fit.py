"""The change that makes a run fit, and the check before a run starts."""

from dataclasses import replace

import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.plan import hardware
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.fit import (
    add_lora,
    apply_changes,
    check_memory,
    format_flags,
    is_valid,
    max_accumulation,
    mesh_topology,
    suggest,
)
from jaxbooth.plan.hardware import find_topology
from jaxbooth.sharding import make_mesh
from tests.small_models import write_model

MIB = 2**20


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small model of SD 1.5's kind."""
    return str(write_model("sd15", tmp_path_factory.mktemp("models") / "sd15"))


@pytest.fixture
def planned(small):
    """Reads the small model, and describes devices that have a part of the memory that a step needs."""

    def run(share, topology="a100-80gb:1", **train):
        where = find_topology(topology)
        config, base = abstract_base(Config.model_validate({"model": small, "train": train}), where.platform)
        needed = estimate(config, base, where).at().hbm_bytes
        where = replace(where, chip=where.chip._replace(memory=share * needed))
        return config, base, where

    return run


def changed(config, flags):
    """Applies a proposal as it is typed."""
    words = flags.split()
    changes = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            given = words[place + 1] if place + 1 < len(words) and not words[place + 1].startswith("--") else "True"
            key = word.removeprefix("--").replace("-", "_")
            changes[key] = int(given) if given.isdecimal() else True if given == "True" else given
    return apply_changes(config, changes)


def advice_of(config, base, where):
    """Asks for advice."""
    return suggest(config, base, where, estimate(config, base, where))


def test_a_run_that_fits_needs_no_advice(planned):
    assert advice_of(*planned(1.01, batch_size=8)) == []


def test_the_cheapest_advice_cuts_the_batch_and_fits(planned):
    config, base, where = planned(0.7, batch_size=8)
    first, *_ = advice_of(config, base, where)
    assert first == "--train.gradient-accumulation-steps 8"
    assert estimate(changed(config, first), base, where).fits()


def test_every_proposal_fits_when_it_is_estimated_again(planned):
    config, base, where = planned(0.5, "a100-80gb:4", batch_size=64)
    proposals = advice_of(config, base, where)
    assert len(proposals) == 2
    for flags in proposals:
        other = changed(config, flags)
        assert estimate(other, add_lora(base, other), where).fits()


def test_a_single_row_cannot_be_cut_and_the_state_is_what_is_too_large(planned):
    config, base, where = planned(0.3, "a100-80gb:4", batch_size=1, prior_weight=0)
    proposals = advice_of(config, base, where)
    assert proposals
    assert all("accumulation" not in flags for flags in proposals)


def test_nothing_fits_a_device_that_is_far_too_small(planned):
    assert advice_of(*planned(0.01, batch_size=2)) == []


def test_a_setting_that_train_would_refuse_is_not_proposed():
    factored = {"train.optimizer": "adafactor"}
    assert is_valid(apply_changes(Config(), factored))
    assert not is_valid(apply_changes(Config.model_validate({"train": {"b1": 0.8}}), factored))


def test_rows_are_cut_into_parts_that_divide_both_kinds():
    rows = [(1, 1), (4, 2), (6, 9), (8, 0)]
    configs = [Config.model_validate({"train": {"batch_size": n, "prior_batch_size": m}}) for n, m in rows]
    assert [max_accumulation(config) for config in configs] == [1, 2, 3, 8]


def test_changes_are_said_as_flags():
    assert (
        format_flags({"mesh.data": -1, "mesh.fsdp": 4, "train.remat": "blocks"}) == "--mesh.fsdp 4 --train.remat blocks"
    )


def with_available(monkeypatch, tmp_path, size):
    """Lets this machine have so many free bytes."""
    told = tmp_path / "meminfo"
    told.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {int(size / 1024)} kB\n")
    monkeypatch.setattr(hardware, "MEMINFO", told)


def test_a_run_that_fits_this_machine_is_not_mentioned(monkeypatch, tmp_path, planned, mesh, capsys):
    config, base, _ = planned(1, "cpu:1", batch_size=2)
    with_available(monkeypatch, tmp_path, 512 * MIB)
    check_memory(config, base, mesh)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_does_not_fit_is_stopped_with_what_it_needs_and_what_helps(monkeypatch, tmp_path, planned, mesh):
    config, base, where = planned(0.8, "cpu:1", batch_size=8)
    with_available(monkeypatch, tmp_path, where.chip.memory)
    with pytest.raises(UserError) as stop:
        check_memory(config, base, mesh)
    said = str(stop.value)
    assert "GiB" in said
    assert "the cheapest change that fits: --train.gradient-accumulation-steps 8" in said
    assert said.endswith("--force trains all the same.")


def test_a_run_that_nothing_makes_fit_is_said_so(monkeypatch, tmp_path, planned, mesh):
    config, base, _ = planned(1, "cpu:1", batch_size=1)
    with_available(monkeypatch, tmp_path, MIB)
    with pytest.raises(UserError, match="no change of settings makes it fit"):
        check_memory(config, base, mesh)


def test_this_machines_devices_share_its_memory(monkeypatch, tmp_path):
    with_available(monkeypatch, tmp_path, 800 * MIB)
    here = mesh_topology(make_mesh())
    assert (here.devices, here.platform, here.chip.name) == (8, "cpu", "cpu")
    assert here.chip.memory == pytest.approx(100 * MIB, rel=1e-3)
