"""Which change of the configuration makes a run fit, the cheapest first."""

from collections.abc import Iterator
from typing import Any

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import run_lora_spec
from jaxbooth.config.rules import check_rows, check_training, ineffective_options
from jaxbooth.config.run_config import Config, flag
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_mesh, abstract_step
from jaxbooth.plan.estimate import Estimate, estimate, held_bytes
from jaxbooth.plan.topology import Topology

SUGGESTED_RANK = 16  # of a LoRA that is proposed
MAX_SUGGESTIONS = 2  # proposals: the cheapest, and another to choose from

Changes = dict[str, Any]  # dotted key -> value


def suggest(config: Config, base: BaseModel, topology: Topology, estimated: Estimate) -> list[str]:
    """Returns the flags of up to two changes that make a step fit by its estimate; the cheaper first.

    Accumulation costs little and leaves the result as it is; remat costs a third more time; FSDP costs traffic between
    the devices; a LoRA or another optimizer changes what is trained. Each alone, then those that keep the result
    together, then all of them.

    Args:
        estimated: of `config`. A step that fits already needs no change, and the list is empty.
    """
    if estimated.fits():
        return []
    found: list[Changes] = []
    for changes in candidate_changes(config, topology):
        covered = any(changes.items() >= other.items() for other in found)
        changed = apply_changes(config, changes)
        if not covered and is_valid(changed) and fits(changed, add_lora(base, changed), topology):
            found.append(changes)
        if len(found) == MAX_SUGGESTIONS:
            break
    return [format_flags(changes) for changes in found]


def fits(config: Config, base: BaseModel, topology: Topology) -> bool:
    """Whether a step fits; traced only where what is always held leaves room."""
    step = abstract_step(config, base, abstract_mesh(config, topology))
    limit = topology.chip.memory
    has_room = limit is None or sum(held_bytes(step).values()) < limit
    return has_room and estimate(config, base, topology).fits()


def candidate_changes(config: Config, topology: Topology) -> Iterator[Changes]:
    """Yields changes in order of their cost."""
    train, mesh = config.train, config.mesh
    parts = max_accumulation(config)
    accumulation: Changes = (
        {"train.gradient_accumulation_steps": parts} if parts > train.gradient_accumulation_steps else {}
    )
    remat: Changes = {} if train.remat == "blocks" else {"train.remat": "blocks"}
    across = topology.devices // mesh.tensor
    fsdp: Changes = {"mesh.data": -1, "mesh.fsdp": across} if across > mesh.fsdp else {}
    lora: Changes = {} if config.lora.rank else {"lora.rank": SUGGESTED_RANK}
    factored: Changes = {} if train.optimizer == "adafactor" else {"train.optimizer": "adafactor"}
    kept = (accumulation, remat, accumulation | remat, fsdp, fsdp | remat, fsdp | accumulation | remat)
    changed = (lora, factored, lora | remat, factored | remat, lora | accumulation | remat)
    last = (fsdp | lora | accumulation | remat, fsdp | factored | accumulation | remat)
    yield from (changes for changes in (*kept, *changed, *last) if changes)


def max_accumulation(config: Config) -> int:
    """Returns the most micro-batches that a step's instance and prior rows can be cut into."""
    rows = (config.train.batch_size, config.prior_rows)
    return max(parts for parts in range(1, rows[0] + 1) if all(count % parts == 0 for count in rows))


def apply_changes(config: Config, changes: Changes) -> Config:
    """Returns a configuration with other values for dotted keys."""
    for key, value in changes.items():
        name, leaf = key.split(".")
        section = getattr(config, name).model_copy(update={leaf: value})
        config = config.model_copy(update={name: section})
    return config


def add_lora(base: BaseModel, config: Config) -> BaseModel:
    """Gives a base the adapters of a configuration, if it has some and the base has not."""
    lora = run_lora_spec(config)
    return base.with_lora(lora) if lora and base.lora is None else base


def is_valid(config: Config) -> bool:
    """Whether `train` would take these settings together."""
    try:
        check_rows(config)
        check_training(config)
    except UserError:
        return False
    return not any(ineffective_options(config))


def format_flags(changes: Changes) -> str:
    """Returns the flags of a change, as they are typed."""
    shown = {key: value for key, value in changes.items() if key != "mesh.data"}
    return " ".join(flag(key) if value is True else f"{flag(key)} {value}" for key, value in shown.items())
