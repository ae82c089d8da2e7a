"""Does a step fit into the devices' memory, and which change of the configuration makes it fit?"""

from typing import Any

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import run_lora_spec
from jaxbooth.config.prior import ROW_METHODS
from jaxbooth.config.rules import check_rows, check_training, ineffective_options
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag
from jaxbooth.console.messages import info
from jaxbooth.console.numbers import GIB
from jaxbooth.errors import UserError
from jaxbooth.models.remat import REMATS, Remat
from jaxbooth.plan.abstract_step import abstract_mesh, abstract_step, persistent_bytes
from jaxbooth.plan.estimate import Estimate, estimate
from jaxbooth.plan.hardware import Topology, mesh_topology

# What `--train.remat auto` tries, in this order. An estimate sees no gain in `dots`; see docs/speed.md.
AUTO_POLICIES: tuple[Remat, ...] = ("none", "attention", "blocks")
SUGGESTED_RANK = 16  # of a LoRA
MAX_SUGGESTIONS = 2  # the cheapest, and another to choose from

Changes = dict[str, Any]  # dotted key -> value


def check_memory(config: Config, base: BaseModel, mesh: Mesh) -> Config:
    """Estimates a run's step on the devices that it will use, before anything is generated or trained.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens.

    Returns:
        The run with a named `--train.remat`, the same on all processes.

    Raises:
        UserError: it does not fit, and `--force` was not given; the message names the cheapest change that does.
    """
    topology = mesh_topology(mesh)
    limit = topology.chip.memory
    if limit is None:
        return config
    resolved, estimated = resolve_remat(config, base, topology)
    needed = estimated.at().hbm_bytes
    if not estimated.fits() and not config.force:
        raise out_of_memory_error(resolved, base, estimated)
    policy = REMATS[int(broadcast_one_to_all(np.int32(REMATS.index(resolved.train.remat_policy))))]
    if policy != config.train.remat_policy:
        info(f"--train.remat {policy}: a step needs {needed / GIB:.1f} of the device's {limit / GIB:.1f} GiB with it")
    return apply_changes(config, {"train.remat": policy})


def resolve_remat(config: Config, base: BaseModel, topology: Topology) -> tuple[Config, Estimate]:
    """Returns the run with a named `--train.remat`, and the estimate of its step.

    `auto` becomes the first of AUTO_POLICIES with which a step fits, and the last one where none does. On a CPU it
    becomes `none`, since XLA's CPU compiler keeps what any policy would drop.

    Args:
        config: with its resolution.
    """
    is_auto = config.train.remat == "auto" and topology.platform != "cpu"
    for policy in AUTO_POLICIES if is_auto else (config.train.remat_policy,):
        config = apply_changes(config, {"train.remat": policy})
        estimated = estimate(config, base, topology)
        if estimated.fits():
            break
    return config, estimated


def out_of_memory_error(config: Config, base: BaseModel, estimated: Estimate) -> UserError:
    """Returns the error of a step that does not fit, or of the encoding of its prompts."""
    needed, limit = estimated.needed(), estimated.topology.chip.memory or 0
    what = "encoding the prompts" if needed == estimated.encoding else "a step"
    suggestions = suggest(config, base, estimated.topology, estimated)
    others = f" (or {' or '.join(suggestions[1:])})" if suggestions[1:] else ""
    change = (
        f"the cheapest change that fits: {suggestions[0]}{others}"
        if suggestions
        else "no change of settings makes it fit"
    )
    return UserError(
        f"{what} needs {needed / GIB:.1f} GiB, but the device has {limit / GIB:.1f}; {change}; --force trains anyway."
    )


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
    suggested: list[Changes] = []
    for changes in candidate_changes(config, topology):
        is_covered = any(changes.items() >= cheaper.items() for cheaper in suggested)
        changed = apply_changes(config, changes)
        if not is_covered and is_valid(changed) and fits(changed, add_lora(base, changed), topology):
            suggested.append(changes)
        if len(suggested) == MAX_SUGGESTIONS:
            break
    return [format_flags(changes) for changes in suggested]


def candidate_changes(config: Config, topology: Topology) -> list[Changes]:
    """Returns changes in order of their cost; one that the configuration has already is empty and left out."""
    train, mesh = config.train, config.mesh
    micro_batches, shards = max_accumulation(config), topology.devices // mesh.tensor
    is_split_further = micro_batches > train.gradient_accumulation_steps
    accumulation: Changes = {"train.gradient_accumulation_steps": micro_batches} if is_split_further else {}
    remat: Changes = {} if train.remat == "blocks" else {"train.remat": "blocks"}
    fsdp: Changes = {"mesh.data": -1, "mesh.fsdp": shards} if shards > mesh.fsdp else {}
    lora: Changes = {} if config.lora.rank else {"lora.rank": SUGGESTED_RANK}
    adafactor: Changes = {} if train.optimizer == "adafactor" else {"train.optimizer": "adafactor"}
    same_result = [accumulation, remat, accumulation | remat, fsdp, fsdp | remat, fsdp | accumulation | remat]
    other_result = [lora, adafactor, lora | remat, adafactor | remat, lora | accumulation | remat]
    everything = [fsdp | lora | accumulation | remat, fsdp | adafactor | accumulation | remat]
    return [changes for changes in (*same_result, *other_result, *everything) if changes]


def max_accumulation(config: Config) -> int:
    """Returns the most micro-batches into which a step's examples of each kind can be split evenly."""
    instances = config.train.batch_size
    counts = [instances, *(config.prior.rows_of(method, instances) for method in ROW_METHODS)]
    return max(parts for parts in range(1, instances + 1) if not any(count % parts for count in counts))


def apply_changes(config: Config, changes: Changes) -> Config:
    """Returns a configuration with other values for dotted keys."""
    for key, value in changes.items():
        name, leaf = key.split(".")
        section = getattr(config, name).model_copy(update={leaf: value})
        config = config.model_copy(update={name: section})
    return config


def is_valid(config: Config) -> bool:
    """Whether `jaxbooth train` takes these settings together."""
    try:
        check_rows(config)
        check_training(config)
    except UserError:
        return False
    return not any(ineffective_options(config))


def add_lora(base: BaseModel, config: Config) -> BaseModel:
    """Gives a base model the adapters of a configuration, unless it has some."""
    lora = run_lora_spec(config.lora)
    return base.with_lora(lora) if lora and base.lora is None else base


def fits(config: Config, base: BaseModel, topology: Topology) -> bool:
    """Whether a step fits; traced only where what a run always holds leaves room."""
    persistent = persistent_bytes(abstract_step(config, base, abstract_mesh(config.mesh, topology)))
    limit = topology.chip.memory
    has_room = limit is None or sum(persistent.values()) < limit
    return has_room and estimate(config, base, topology).fits()


def format_flags(changes: Changes) -> str:
    """Returns the flags of a change, as they are typed."""
    typed = {key: value for key, value in changes.items() if key != "mesh.data"}
    return " ".join(flag(key) if value is True else f"{flag(key)} {value}" for key, value in typed.items())
