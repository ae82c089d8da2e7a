"""The compiler's side of `jaxbooth plan --compile`, in a process of its own: JSON in, JSON out.

`python -m jaxbooth.plan.compile_child` reads {"config", "topology", "program"} from stdin and prints one line. The
environment that libtpu needs without a TPU would mislead a real TPU host, so that it never leaves this process.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.devices import enable_compilation_cache
from jaxbooth.plan.abstract import abstract_step, plan_base
from jaxbooth.plan.topology import Topology, find_topology
from jaxbooth.sharding import make_mesh, rows_over
from jaxbooth.training.step import make_dispatch

MEGACORE = ("v4",)  # its two cores act as one device


def devices_of(topology: Topology) -> Sequence[jax.Device]:
    """Returns described TPU devices, or devices of this machine.

    Raises:
        ImportError: libtpu is missing.
    """
    if topology.platform != "tpu" or topology.is_here:
        return jax.devices(topology.platform)[: topology.devices]
    import libtpu
    from jax.experimental import topologies

    assert libtpu.get_library_path()
    options: dict[str, Any] = {"chips_per_host_bounds": topology.host_bounds}
    if topology.chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices


def lower_train(config: Config, mesh: Mesh) -> Any:
    """Lowers a dispatch of the real train step."""
    config, base = plan_base(config)
    step = abstract_step(config, base, mesh)
    dispatch = make_dispatch(step.task, step.tx, config.train.steps_per_dispatch, step.state)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return dispatch.lower(step.state, step.frozen, step.bank, count, count)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
ARRAY = re.compile(r"(\w+?)(\d+)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of a compiled program's text, with the bytes of their results: one loop body's worth."""
    found: dict[str, dict[str, int]] = {}
    for result, kind in COLLECTIVE.findall(text):
        sizes = [
            int(bits) // 8 * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
            for _, bits, shape in ARRAY.findall(result)
        ]
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += max(sizes, default=0) if "-start(" in result else sum(sizes)
    return found


def compiled_facts(lowered: Any) -> dict[str, Any]:
    """Compiles and returns what XLA says of one device's share."""
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return {
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "collectives": collectives(compiled.as_text()),
    }


def main() -> None:
    """Does what stdin asks for."""
    asked = json.load(sys.stdin)
    config, topology = Config.model_validate(asked["config"]), find_topology(asked["topology"])
    enable_compilation_cache()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices_of(topology))
    print(json.dumps(compiled_facts(lower_train(config, mesh))))


if __name__ == "__main__":
    main()
