"""What XLA's compiler says of a run's programs, for devices that are here or only described.

`python -m jaxbooth.plan.compile` reads {"config", "topology", "sampling", "slots"} from stdin and prints one line of
JSON. It is a process of its own because the environment that libtpu needs without a TPU would mislead a real TPU host.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from jaxbooth.backend import enable_compilation_cache
from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import GIB
from jaxbooth.console.progress import progress
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.plan.abstract_slots import abstract_slots, slot_bytes, trace_slots
from jaxbooth.plan.abstract_step import abstract_base, abstract_step, device_bytes, persistent_bytes
from jaxbooth.plan.estimate import kernel_platform
from jaxbooth.plan.hardware import Topology, find_topology
from jaxbooth.plan.hlo import collectives
from jaxbooth.plan.programs import sampling_params, trace_sampling, trace_train
from jaxbooth.plan.roofline import StepCost
from jaxbooth.plan.uncounted_flops import uncounted_flops
from jaxbooth.sharding import make_mesh

# libtpu asks the metadata server of a TPU VM unless it is told where it runs, logs into the temporary folder, and locks
# the chips of this machine. The names need not be those of the topology.
WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
PACKAGE_ROOT = Path(__file__).parents[2]
MEGACORE = ("v4",)  # its two cores act as one device
# "... the total memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G)."
EXCEEDS = re.compile(r"\((\d+(?:\.\d+)?)([KMG])\) exceeds available HBM")
UNITS = {"K": 2**10, "M": 2**20, "G": GIB}


class Compiled(NamedTuple):
    """A run's programs after the compiler.

    Attributes:
        cost: of the train step.
        sampling_bytes: memory that a device needs while sample images are generated between steps.
        sampling_flops: of one batch of images; None where the program does not fit.
        analyses: see `compile_here`.
    """

    cost: StepCost
    sampling_bytes: float
    sampling_flops: float | None
    analyses: dict[str, Any]


def compile_plan(config: Config, topology: Topology, estimated: StepCost) -> Compiled:
    """Compiles the train step and the sampling of a configuration.

    Args:
        estimated: of the same step. It gives the FLOPs and bytes of a program that does not fit, of which a compiler
            says no more than its size.

    Raises:
        UserError: libtpu is missing, or this machine cannot compile for the topology.
        RunFailure: the compiler failed.
    """
    analyses = compile_programs(config, topology)
    return Compiled(
        train_cost(analyses, config.train.gradient_accumulation_steps, estimated), *sampling_cost(analyses), analyses
    )


def compile_slots(config: Config, topology: Topology, estimated: StepCost, slots: int) -> StepCost:
    """Compiles the step of so many subjects; see `compile_plan`."""
    analyses = compile_programs(config, topology, sampling=False, slots=slots)
    return train_cost(analyses, 1, estimated)


def compile_programs(config: Config, topology: Topology, sampling: bool = True, slots: int = 0) -> dict[str, Any]:
    """Returns what `compile_here` finds, in this process or in one that can describe the topology.

    Raises:
        UserError, RunFailure: see `compile_plan`.
    """
    environment = child_environment(topology)
    with progress("compile", total=None):
        if topology.is_local:  # another process could not open an accelerator that this one holds
            return compile_here(config, topology, sampling, slots)
        return compile_in_child(config, topology, sampling, slots, environment)


def compile_in_child(
    config: Config, topology: Topology, sampling: bool, slots: int, environment: dict[str, str]
) -> dict[str, Any]:
    """Returns what `compile_here` finds in another process."""
    values = {"config": config.model_dump(mode="json"), "topology": topology.name, "sampling": sampling, "slots": slots}
    request = json.dumps(values)
    command = [sys.executable, "-m", "jaxbooth.plan.compile"]
    done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailure(f"compiling for {topology.name} failed: {reason}")
    analyses = json.loads(done.stdout.splitlines()[-1])
    if "error" in analyses:
        raise UserError(analyses["error"])
    return analyses


def child_environment(topology: Topology) -> dict[str, str]:
    """Returns the environment in which JAX has, or can describe, a topology's devices.

    Raises:
        UserError: it cannot.
    """
    if topology.is_local:
        return {}
    paths = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    inherited = os.environ | {"PYTHONPATH": paths}
    if topology.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f'--compile for {topology.name} needs libtpu: pip install "jaxbooth[tpu]".')
        return inherited | WITHOUT_TPU
    if topology.platform == "cpu":
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={topology.devices}"
        return inherited | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    raise UserError(
        f"--compile cannot describe {topology.name}: it takes TPU names, cpu:N, and on the machine itself local; "
        "leave --compile out for an estimate."
    )


def compile_here(config: Config, topology: Topology, sampling: bool, slots: int = 0) -> dict[str, Any]:
    """Compiles the train step and, if asked, the sampling of a grid's images.

    Args:
        slots: of the step of many subjects; 0: of a run.

    Returns:
        persistent: see `persistent_bytes`; train and sampling: see `compile_and_analyze`, and `params_bytes` of the
        parameters that sampling reads.

    Raises:
        UserError: the mesh does not fit the devices, or there is no such model.
    """
    if not is_described(topology):  # programs for devices that are not here cannot be loaded again
        enable_compilation_cache()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices_of(topology))
    config, base = abstract_base(config, topology.platform)
    if slots:
        many = abstract_slots(config, base, mesh, slots)
        return {
            "persistent": slot_bytes(many),
            "train": compile_and_analyze(trace_slots(config, base, many), topology),
        }
    step = abstract_step(config, base, mesh)
    analyses: dict[str, Any] = {
        "persistent": persistent_bytes(step),
        "train": compile_and_analyze(trace_train(step, config.train.steps_per_dispatch), topology),
    }
    if sampling:
        params = sampling_params(base, step, mesh)
        traced = trace_sampling(config, base, params, mesh)
        analysis = compile_and_analyze(traced, topology, config.validation.steps)
        analyses["sampling"] = analysis | {"params_bytes": device_bytes(params)}
    return analyses


def is_described(topology: Topology) -> bool:
    """Tells whether the devices are TPUs that are not here."""
    return topology.platform == "tpu" and not topology.is_local


def devices_of(topology: Topology) -> Sequence[jax.Device]:
    """Returns described TPU devices, for which JAX loads libtpu, or devices of this machine."""
    if not is_described(topology):
        return jax.devices(topology.platform)[: topology.devices]
    options: dict[str, Any] = {"chips_per_host_bounds": topology.host_bounds}
    if topology.chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices


def compile_and_analyze(traced: Any, topology: Topology, trip_count: int = 1) -> dict[str, Any]:
    """Compiles a program and returns XLA's memory and cost analysis of one device's share.

    A program that the compiler cannot fit has `exceeds`, the bytes that it would need, in place of the analyses.

    Args:
        trip_count: of a loop whose length is data.
    """
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except JaxRuntimeError as error:
        exceeds = EXCEEDS.search(str(error))
        if not exceeds:
            raise
        return {"compile_seconds": time.perf_counter() - began, "exceeds": float(exceeds[1]) * UNITS[exceeds[2]]}
    seconds, memory, cost = time.perf_counter() - began, compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": temp_bytes(memory, topology),
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost.get("flops"),
        "uncounted_flops": uncounted_flops(traced.jaxpr, kernel_platform(topology), topology.devices, trip_count),
        "bytes_accessed": cost.get("bytes accessed"),
        "collectives": collectives(compiled.as_text()),
    }


def temp_bytes(memory: Any, topology: Topology) -> float:
    """Returns the bytes between the lowest and the highest temporary of a program, from its memory analysis.

    libtpu 0.0.42 reports them with the gaps between temporaries counted twice, as the offsets that it assigns show. Its
    `peak_memory_in_bytes` is what is alive at once, with arguments and results and without gaps.
    """
    reported, written = memory.temp_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    alive = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - written
    if topology.platform != "tpu" or not 0 < alive < reported:
        return reported
    return (reported + alive) / 2


def train_cost(analyses: dict[str, Any], micro_batches: int, estimated: StepCost) -> StepCost:
    """Returns what a compiler's analyses say of one step on one device."""
    persistent, train = dict(analyses["persistent"]), analyses["train"]
    resident = persistent.pop("resident")  # no argument of the train step
    code = train.get("code_bytes", 0)
    activations = program_bytes(train) - code - sum(persistent.values())  # the padding of the arrays included
    frozen = persistent["frozen"] + resident
    memory = persistent | {"frozen": frozen, "activations": activations, "program": code}
    if "exceeds" in train:
        return estimated._replace(memory=memory)
    flops = (train["flops"] or 0.0) + train["uncounted_flops"]
    moved = {kind: float(total["bytes"]) for kind, total in train["collectives"].items()}
    return StepCost(memory, flops, step_bytes_accessed(analyses, micro_batches), moved)


def program_bytes(program: dict[str, Any]) -> float:
    """Returns the memory that a program occupies, arguments and results included."""
    if "exceeds" in program:
        return program["exceeds"]
    written = program["output_bytes"] - program["alias_bytes"]
    return program["argument_bytes"] + written + program["temp_bytes"] + program["code_bytes"]


def step_bytes_accessed(analyses: dict[str, Any], micro_batches: int) -> float:
    """Returns the bytes that a step moves. XLA counts one micro-batch; the others move all but the optimizer's bytes.

    An update reads parameters, state and gradients and writes the first two.
    """
    counted, persistent = analyses["train"]["bytes_accessed"] or 0.0, analyses["persistent"]
    update = 3 * persistent["parameters"] + 2 * persistent["optimizer"]
    return counted + (micro_batches - 1) * max(0.0, counted - update)


def sampling_cost(analyses: dict[str, Any]) -> tuple[float, float | None]:
    """Returns a device's memory while it generates images, the run's other arrays included, and a batch's FLOPs."""
    sampling, persistent = analyses["sampling"], sum(analyses["persistent"].values())
    memory = persistent + program_bytes(sampling) - sampling["params_bytes"]
    return memory, None if "exceeds" in sampling else (sampling["flops"] or 0.0) + sampling["uncounted_flops"]


def main() -> None:
    """Compiles what stdin asks for."""
    request = json.load(sys.stdin)
    config, topology = Config.model_validate(request["config"]), find_topology(request["topology"])
    try:
        analyses = compile_here(config, topology, request["sampling"], request["slots"])
    except UserError as error:
        analyses = {"error": str(error)}
    print(json.dumps(analyses))


if __name__ == "__main__":
    main()
