"""Does a step fit into the devices' memory, and which change of the configuration makes it fit?"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh

from jaxbooth.base.adapters import run_lora_spec
from jaxbooth.base.model import BaseModel
from jaxbooth.config.prior import ROW_METHODS
from jaxbooth.config.rules import check_rows, check_training, ineffective_options
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag
from jaxbooth.console.messages import info
from jaxbooth.console.numbers import GIB
from jaxbooth.errors import UserError
from jaxbooth.models.quantization import Quantization
from jaxbooth.models.remat import REMATS, Remat
from jaxbooth.plan.abstract_step import abstract_mesh, abstract_step, persistent_bytes
from jaxbooth.plan.estimate import Estimate, estimate
from jaxbooth.plan.hardware import Topology, mesh_topology

# What `--train.remat auto` tries, in this order. An estimate sees no gain in `dots`; see docs/speed.md.
AUTO_POLICIES: tuple[Remat, ...] = ("none", "attention", "blocks")
SUGGESTED_RANK = 16  # of a LoRA
SMALL_RANK = 4  # the smallest that is suggested
MAX_SUGGESTIONS = 2  # the cheapest, and another to choose from
# What a frozen base may be held in instead, the more exact first.
SMALLER: dict[Quantization, tuple[Quantization, ...]] = {
    "none": ("int8", "nf4"),
    "int8": ("nf4",),
    "fp8": ("nf4",),
    "int4": (),
    "nf4": (),
}

Changes = dict[str, Any]  # dotted key -> value


class Suggestion(NamedTuple):
    """A change of the configuration that makes a step fit, and the bytes that a device needs with it."""

    changes: Changes
    needed: float

    @property
    def flags(self) -> str:
        """The change, as it is typed."""
        return format_flags(self.changes)

    def __str__(self) -> str:
        return f"{self.flags} ({self.needed / GIB:.1f} GiB)"


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


def fit_to_memory(config: Config, base: BaseModel, mesh: Mesh) -> Config:
    """Applies the cheapest change with which a run fits and trains what it was to train; none where none does.

    Args:
        config: with its resolution.
        base: see `check_memory`.

    Returns:
        The run as it is to be started, the same on all processes.
    """
    topology = mesh_topology(mesh)
    resolved, estimated = resolve_remat(config, base, topology)
    candidates = same_training(resolved, topology)
    fitting = fitting_changes(candidates, resolved, base, topology) if not estimated.fits() else iter(())
    first = next(fitting, None)
    index = int(broadcast_one_to_all(np.int32(-1 if first is None else candidates.index(first.changes))))
    if index < 0:
        return config
    info(f"--fit: {format_flags(candidates[index])}, the cheapest change with which a step fits the device's memory")
    return apply_changes(resolved, candidates[index])


def out_of_memory_error(config: Config, base: BaseModel, estimated: Estimate) -> UserError:
    """Returns the error of a step that does not fit, or of the encoding of its prompts."""
    needed, limit = estimated.needed(), estimated.topology.chip.memory or 0
    what = "encoding the prompts" if needed == estimated.encoding else "a step"
    suggestions = [str(suggestion) for suggestion in suggest(config, base, estimated.topology, estimated)]
    others = f" (or {' or '.join(suggestions[1:])})" if suggestions[1:] else ""
    change = (
        f"the cheapest change that fits: {suggestions[0]}{others}"
        if suggestions
        else "no change of settings makes it fit"
    )
    return UserError(
        f"{what} needs {needed / GIB:.1f} GiB, but the device has {limit / GIB:.1f}; {change}; --force trains anyway."
    )


def suggest(config: Config, base: BaseModel, topology: Topology, estimated: Estimate) -> list[Suggestion]:
    """Returns up to two changes that make a step fit by its estimate; the cheaper first.

    Accumulation costs little and leaves the result as it is; remat costs a third more time; FSDP costs traffic between
    the devices; a quantized base costs a little exactness, and a smaller rank what it could have learned; a LoRA or
    another optimizer changes what is trained. Each alone, then those that keep the result together, then all of them.

    Args:
        estimated: of `config`. A step that fits already needs no change, and the list is empty.
    """
    if estimated.fits():
        return []
    candidates = [*same_training(config, topology), *other_training(config, topology)]
    fitting = fitting_changes(candidates, config, base, topology)
    return list(itertools.islice(fitting, MAX_SUGGESTIONS))


def fitting_changes(
    candidates: list[Changes], config: Config, base: BaseModel, topology: Topology
) -> Iterator[Suggestion]:
    """Yields the changes that `train` takes and that make a step fit, without those that add to one before."""
    found: list[Changes] = []
    for changes in candidates:
        is_covered = any(changes.items() >= cheaper.items() for cheaper in found)
        changed = apply_changes(config, changes)
        needed = None if is_covered or not is_valid(changed) else needed_if_fits(changed, base, topology)
        if needed is not None:
            found.append(changes)
            yield Suggestion(changes, needed)


def same_training(config: Config, topology: Topology) -> list[Changes]:
    """Returns changes that leave what is trained as it is, in order of their cost; empty ones are left out."""
    same_result = [accumulation(config), remat(config), accumulation(config) | remat(config)]
    spread = fsdp(config, topology)
    same_result += [spread, spread | remat(config), spread | accumulation(config) | remat(config)]
    everything = same_result[-1]
    smaller = [{"model_quantization": kind} for kind in SMALLER[config.model_quantization]] if is_frozen(config) else []
    for changes in list(smaller):
        same_result += [changes, changes | remat(config), changes | everything]
    rank: Changes = {"lora.rank": SMALL_RANK} if (config.lora.rank or 0) > SMALL_RANK else {}
    same_result += [rank, rank | everything, *(rank | changes | everything for changes in smaller if rank)]
    return [changes for changes in same_result if changes]


def other_training(config: Config, topology: Topology) -> list[Changes]:
    """Returns changes of what is trained, or by which rule, in order of their cost; empty ones are left out."""
    lora: Changes = {} if is_frozen(config) else {"lora.rank": SUGGESTED_RANK}
    adafactor: Changes = {} if config.train.optimizer == "adafactor" else {"train.optimizer": "adafactor"}
    again, parts, spread = remat(config), accumulation(config), fsdp(config, topology)
    quantized: list[Changes] = [{"model_quantization": kind} for kind in SMALLER[config.model_quantization] if lora]
    other_result = [lora, adafactor, lora | again, adafactor | again, lora | parts | again]
    other_result += [spread | lora | parts | again, spread | adafactor | parts | again]
    other_result += [spread | lora | parts | again | changes for changes in quantized]
    return [changes for changes in other_result if changes]


def is_frozen(config: Config) -> bool:
    """Whether the base model's own weights stay as they are."""
    return bool(config.lora.rank) or config.text.is_textual_inversion


def accumulation(config: Config) -> Changes:
    """Returns the change that splits a step into as many micro-batches as it can; empty where it is split so."""
    micro_batches = max_accumulation(config)
    is_split_further = micro_batches > config.train.gradient_accumulation_steps
    return {"train.gradient_accumulation_steps": micro_batches} if is_split_further else {}


def remat(config: Config) -> Changes:
    """Returns the change by which no block keeps more than its input."""
    return {} if config.train.remat == "blocks" else {"train.remat": "blocks"}


def fsdp(config: Config, topology: Topology) -> Changes:
    """Returns the change that shards the model over all devices."""
    shards = topology.devices // config.mesh.tensor
    return {"mesh.data": -1, "mesh.fsdp": shards} if shards > config.mesh.fsdp else {}


def max_accumulation(config: Config) -> int:
    """Returns the most micro-batches into which a step's examples of each kind can be split evenly."""
    instances = config.train.batch_size
    counts = [instances, *(config.prior.rows_of(method, instances) for method in ROW_METHODS)]
    return max(parts for parts in range(1, instances + 1) if not any(count % parts for count in counts))


def apply_changes(config: Config, changes: Changes) -> Config:
    """Returns a configuration with other values for dotted keys."""
    for key, value in changes.items():
        name, _, leaf = key.partition(".")
        changed = getattr(config, name).model_copy(update={leaf: value}) if leaf else value
        config = config.model_copy(update={name: changed})
    return config


def is_valid(config: Config) -> bool:
    """Whether `jaxbooth train` takes these settings together."""
    try:
        check_rows(config)
        check_training(config)
    except UserError:
        return False
    return not any(ineffective_options(config))


def changed_base(base: BaseModel, config: Config) -> BaseModel:
    """Returns a base model with the adapters of a configuration, and its frozen weights held as that says."""
    lora = run_lora_spec(config.lora)
    base = base.with_quantization(config.model_quantization)
    return base.with_lora(lora) if lora else base


def needed_if_fits(config: Config, base: BaseModel, topology: Topology) -> float | None:
    """Returns the bytes that a device needs for a step that fits; traced only where what a run always holds has room.

    Args:
        base: of another configuration of the run.
    """
    base = changed_base(base, config)
    persistent = persistent_bytes(abstract_step(config, base, abstract_mesh(config.mesh, topology)))
    limit = topology.chip.memory
    if limit is not None and sum(persistent.values()) >= limit:
        return None
    estimated = estimate(config, base, topology)
    return estimated.needed() if estimated.fits() else None


def format_flags(changes: Changes) -> str:
    """Returns the flags of a change, as they are typed."""
    typed = {key: value for key, value in changes.items() if key != "mesh.data"}
    return " ".join(flag(key) if value is True else f"{flag(key)} {value}" for key, value in typed.items())
