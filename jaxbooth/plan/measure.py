"""Times a step on this machine's own devices, where no published peaks tell how long it takes, as on most CPUs.

What a step computes does not depend on the weights, so zeros take as long.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxbooth.backend import enable_compilation_cache
from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import format_metric
from jaxbooth.console.progress import progress
from jaxbooth.plan.abstract_step import abstract_step
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.hardware import Topology
from jaxbooth.plan.programs import trace_train
from jaxbooth.sharding import make_mesh

MAX_FLOPS = 5e11  # of a step that is compiled and timed unasked: half a minute on two CPU cores
TIMED_STEPS = 3  # after one that is not timed


def reason_not_to_measure(estimated: Estimate, topology: Topology, compiles: bool) -> str | None:
    """Says why a step on unknown devices is not timed; None where it will be."""
    flops = estimated.at().flops
    if not topology.is_local:
        return f"unknown: jaxbooth knows no speed of {topology.name}; --topology local times a step on the machine"
    if not estimated.fits():
        return "not measured: the step does not fit into memory"
    if flops > MAX_FLOPS and not compiles:
        work = format_metric(flops, "FLOP")
        return f"not measured: a step of {work} may take minutes to compile here; --compile does it and times a step"
    return None


def measure_step(config: Config, base: BaseModel, topology: Topology) -> float:
    """Compiles the train step for this machine and returns the median seconds of TIMED_STEPS steps.

    Args:
        config: with its resolution and checkpointing policy.
    """
    enable_compilation_cache()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, jax.devices(topology.platform))
    step = abstract_step(config, base, mesh)
    with progress("measure", total=None):
        program = trace_train(step, steps_per_dispatch=1).lower().compile()
        state, frozen, source, key = zeros((step.state, step.frozen, step.source, step.key))
        count, seconds = jnp.int32(1), []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(program(state, frozen, source, key, count))
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def zeros(tree: Any) -> Any:
    """Returns arrays of zeros in place of abstract ones."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), tree)
