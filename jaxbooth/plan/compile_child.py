"""The compiler's side of `jaxbooth plan --compile`: what XLA says of a run's two programs.

`python -m jaxbooth.plan.compile_child` reads {"config", "topology", "sampling"} from stdin and prints one line of JSON.
It is a process of its own because the environment that libtpu needs without a TPU would mislead a real TPU host.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from jaxbooth.backend import enable_compilation_cache
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_base, abstract_step
from jaxbooth.plan.chips import GIB
from jaxbooth.plan.estimate import kernel_platform
from jaxbooth.plan.hlo import collectives
from jaxbooth.plan.programs import device_bytes, held_bytes, sampling_params, trace_sampling, trace_train
from jaxbooth.plan.topology import Topology, find_topology
from jaxbooth.plan.uncounted_flops import uncounted_flops
from jaxbooth.sharding import make_mesh

MEGACORE = ("v4",)  # its two cores act as one device
# "... the total memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G)."
EXCEEDS = re.compile(r"\((\d+(?:\.\d+)?)([KMG])\) exceeds available HBM")
UNITS = {"K": 2**10, "M": 2**20, "G": GIB}


def is_described(topology: Topology) -> bool:
    """Tells whether the devices are TPUs that are not here."""
    return topology.platform == "tpu" and not topology.is_here


def devices_of(topology: Topology) -> Sequence[jax.Device]:
    """Returns described TPU devices, for which JAX loads libtpu, or devices of this machine."""
    if not is_described(topology):
        return jax.devices(topology.platform)[: topology.devices]
    options: dict[str, Any] = {"chips_per_host_bounds": topology.host_bounds}
    if topology.chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices


def compile_and_analyze(traced: Any, topology: Topology, turns: int = 1) -> dict[str, Any]:
    """Compiles a program, whose loop is to take `turns`, and returns what XLA says of one device's share.

    A program that the compiler cannot fit has `exceeds`, the bytes that it would need, in place of its facts.
    """
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except JaxRuntimeError as error:
        found = EXCEEDS.search(str(error))
        if not found:
            raise
        return {"compile_seconds": time.perf_counter() - began, "exceeds": float(found[1]) * UNITS[found[2]]}
    seconds, memory, cost = time.perf_counter() - began, compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost.get("flops"),
        "uncounted_flops": uncounted_flops(traced.jaxpr, kernel_platform(topology), topology.devices, turns),
        "bytes_accessed": cost.get("bytes accessed"),
        "collectives": collectives(compiled.as_text()),
    }


def compile_here(config: Config, topology: Topology, sampling: bool) -> dict[str, Any]:
    """Compiles the train step and, if asked, the drawing of sample pictures.

    Returns:
        held: see `held_bytes`; train and sampling: see `compile_and_analyze`, and `params_bytes`, what sampling reads.

    Raises:
        UserError: the mesh does not fit the devices, or there is no such model.
    """
    if not is_described(topology):  # programs for devices that are not here cannot be loaded again
        enable_compilation_cache()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices_of(topology))
    config, base = abstract_base(config, topology.platform)
    step = abstract_step(config, base, mesh)
    facts = {"held": held_bytes(step), "train": compile_and_analyze(trace_train(config, step), topology)}
    if sampling:
        used = sampling_params(base, step, mesh)
        drawn = compile_and_analyze(trace_sampling(config, base, used, mesh), topology, config.validation.steps)
        facts["sampling"] = drawn | {"params_bytes": device_bytes(used)}
    return facts


def main() -> None:
    """Does what stdin asks for."""
    asked = json.load(sys.stdin)
    config, topology = Config.model_validate(asked["config"]), find_topology(asked["topology"])
    try:
        facts = compile_here(config, topology, asked["sampling"])
    except UserError as error:
        facts = {"error": str(error)}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
