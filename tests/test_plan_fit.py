"""Which changes make a run fit, and the check before a run starts."""

from dataclasses import replace

import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.plan import hardware
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.fit import (
    Suggestion,
    apply_changes,
    changed_base,
    check_memory,
    fit_to_memory,
    format_flags,
    is_valid,
    max_accumulation,
    mesh_topology,
    same_training,
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
    """Reads the small model, and describes devices that have a share of the memory that a step needs."""

    def run(share, name="a100-80gb:1", prior=None, **train):
        topology = find_topology(name)
        config, base = abstract_base(
            Config.model_validate({"model": small, "train": train, "prior": prior or {}}), topology.platform
        )
        needed = estimate(config, base, topology).at().hbm_bytes
        topology = replace(topology, chip=topology.chip._replace(memory=share * needed))
        return config, base, topology

    return run


def changed(config, flags):
    """Applies a suggestion as a user types it."""
    words = flags.split()
    changes = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            given = words[place + 1] if place + 1 < len(words) and not words[place + 1].startswith("--") else "True"
            key = word.removeprefix("--").replace("-", "_")
            changes[key] = int(given) if given.isdecimal() else True if given == "True" else given
    return apply_changes(config, changes)


def suggestions(config, base, topology):
    """Returns the flags of the suggested changes of a step."""
    return [found.flags for found in suggest(config, base, topology, estimate(config, base, topology))]


def test_a_run_that_fits_gets_no_suggestion(planned):
    assert suggestions(*planned(1.01, batch_size=8)) == []


def test_the_cheapest_suggestion_accumulates_gradients_and_fits(planned):
    config, base, topology = planned(0.7, batch_size=8)
    first, *_ = suggestions(config, base, topology)
    assert first == "--train.gradient-accumulation-steps 8"
    assert estimate(changed(config, first), base, topology).fits()


def test_every_suggestion_fits_when_it_is_estimated_again(planned):
    config, base, topology = planned(0.5, "a100-80gb:4", batch_size=64)
    suggested = suggestions(config, base, topology)
    assert len(suggested) == 2
    for flags in suggested:
        other = changed(config, flags)
        assert estimate(other, changed_base(base, other), topology).fits()


def test_a_single_image_cannot_be_split_and_the_state_is_what_is_too_large(planned):
    config, base, topology = planned(0.3, "a100-80gb:4", batch_size=1, prior={"weight": 0})
    suggested = suggestions(config, base, topology)
    assert suggested
    assert all("accumulation" not in flags for flags in suggested)


def test_a_frozen_base_is_quantized_where_recomputing_is_not_enough_and_the_rank_falls_last():
    topology = find_topology("a100-80gb:1")
    given = {"lora": {"rank": 8}, "train": {"batch_size": 1}, "prior": {"weight": 0}}
    config = Config.model_validate(given)
    changes = [format_flags(change) for change in same_training(config, topology)]
    first = {flags: changes.index(flags) for flags in ("--train.remat blocks", "--lora.rank 4")}
    first |= {kind: changes.index(f"--model-quantization {kind}") for kind in ("int8", "nf4")}
    assert sorted(first, key=lambda flags: first[flags]) == ["--train.remat blocks", "int8", "nf4", "--lora.rank 4"]


def test_what_is_quantized_already_is_quantized_further_or_not_at_all():
    topology = find_topology("a100-80gb:1")
    kinds = {
        kind: {
            change["model_quantization"]
            for change in same_training(
                Config.model_validate({"lora": {"rank": 4}, "model_quantization": kind}), topology
            )
            if "model_quantization" in change
        }
        for kind in ("none", "int8", "nf4")
    }
    assert kinds == {"none": {"int8", "nf4"}, "int8": {"nf4"}, "nf4": set()}


def test_nothing_of_a_full_fine_tuning_is_quantized():
    assert not [change for change in same_training(Config(), find_topology("a100-80gb:1")) if "model" in str(change)]


def test_a_suggestion_says_what_is_needed_with_it():
    assert str(Suggestion({"model_quantization": "int8"}, 7.25 * 2**30)) == "--model-quantization int8 (7.2 GiB)"


def test_fit_applies_the_cheapest_change(monkeypatch, tmp_path, planned, mesh, capsys):
    config, base, topology = planned(0.8, "cpu:1", batch_size=8)
    set_available_memory(monkeypatch, tmp_path, topology.chip.memory)
    fitted = fit_to_memory(config, base, mesh)
    assert fitted.train.gradient_accumulation_steps == 8
    assert "--fit: --train.gradient-accumulation-steps 8, the cheapest change" in capsys.readouterr().out
    assert fit_to_memory(fitted, base, mesh) == fitted


def test_nothing_fits_a_device_that_is_far_too_small(planned):
    assert suggestions(*planned(0.01, batch_size=2)) == []


def test_a_setting_that_train_refuses_is_not_suggested():
    factored = {"train.optimizer": "adafactor"}
    assert is_valid(apply_changes(Config(), factored))
    assert not is_valid(apply_changes(Config.model_validate({"train": {"b1": 0.8}}), factored))


def test_a_batch_is_split_into_parts_that_divide_instance_and_prior_images():
    batches = [(1, 1), (4, 2), (6, 9), (8, 0)]
    configs = [Config.model_validate({"train": {"batch_size": n}, "prior": {"rows": m}}) for n, m in batches]
    assert [max_accumulation(config) for config in configs] == [1, 2, 3, 8]


def test_changes_are_shown_as_flags():
    assert (
        format_flags({"mesh.data": -1, "mesh.fsdp": 4, "train.remat": "blocks"}) == "--mesh.fsdp 4 --train.remat blocks"
    )


def set_available_memory(monkeypatch, tmp_path, size):
    """Pretends that this machine has so many free bytes."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {int(size / 1024)} kB\n")
    monkeypatch.setattr(hardware, "MEMINFO", meminfo)


def test_a_run_that_fits_this_machine_is_not_mentioned(monkeypatch, tmp_path, planned, mesh, capsys):
    config, base, _ = planned(1, "cpu:1", batch_size=2)
    set_available_memory(monkeypatch, tmp_path, 512 * MIB)
    check_memory(config, base, mesh)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_does_not_fit_is_refused_with_what_it_needs_and_what_helps(monkeypatch, tmp_path, planned, mesh):
    config, base, topology = planned(0.8, "cpu:1", batch_size=8)
    set_available_memory(monkeypatch, tmp_path, topology.chip.memory)
    with pytest.raises(UserError) as stop:
        check_memory(config, base, mesh)
    message = str(stop.value)
    assert "GiB" in message
    assert "the cheapest change that fits: --train.gradient-accumulation-steps 8" in message
    assert message.endswith("--force trains anyway.")


def test_a_run_that_no_change_makes_fit_is_refused(monkeypatch, tmp_path, planned, mesh):
    config, base, _ = planned(1, "cpu:1", batch_size=1)
    set_available_memory(monkeypatch, tmp_path, MIB)
    with pytest.raises(UserError, match="no change of settings makes it fit"):
        check_memory(config, base, mesh)


def test_this_machines_devices_share_its_memory(monkeypatch, tmp_path):
    set_available_memory(monkeypatch, tmp_path, 800 * MIB)
    local = mesh_topology(make_mesh())
    assert (local.devices, local.platform, local.chip.name) == (8, "cpu", "cpu")
    assert local.chip.memory == pytest.approx(100 * MIB, rel=1e-3)
