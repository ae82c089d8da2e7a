"""What XLA says of a run's programs, for devices that are here or only described."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.plan.compile_child import compile_here
from jaxbooth.plan.figures import StepCost
from jaxbooth.plan.topology import Topology

# libtpu asks the metadata server of a TPU VM unless it is told where it runs, logs into the temporary folder, and locks
# the chips of this machine. The names need not be those of the topology.
WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
PACKAGE_ROOT = Path(__file__).parents[2]


class Compiled(NamedTuple):
    """A run's programs after the compiler.

    Attributes:
        figures: of the train step.
        sampling_bytes: memory that a device needs while sample pictures are drawn between steps.
        sampling_flops: of one batch of pictures; None where the program does not fit.
        facts: see `compile_here`.
    """

    figures: StepCost
    sampling_bytes: float
    sampling_flops: float | None
    facts: dict[str, Any]


def compile_plan(config: Config, topology: Topology, estimated: StepCost) -> Compiled:
    """Compiles the train step and the sampling step of a configuration.

    Args:
        estimated: of the same step. It gives the FLOPs and bytes of a program that does not fit, of which a compiler
            says no more than its size.

    Raises:
        UserError: libtpu is missing, or this machine cannot compile for the topology.
        RunFailure: the compiler failed.
    """
    facts = compile_programs(config, topology)
    return Compiled(train_cost(config, facts, estimated), *sampling_cost(facts), facts)


def compile_programs(config: Config, topology: Topology, sampling: bool = True) -> dict[str, Any]:
    """Returns what `compile_here` finds, in this process or in one that can describe the topology.

    Raises:
        UserError, RunFailure: see `compile_plan`.
    """
    environment = child_environment(topology)
    with progress("compile", total=None):
        if topology.is_here:  # another process could not open an accelerator that this one holds
            return compile_here(config, topology, sampling)
        return compile_elsewhere(config, topology, sampling, environment)


def compile_elsewhere(
    config: Config, topology: Topology, sampling: bool, environment: dict[str, str]
) -> dict[str, Any]:
    """Returns what `compile_here` finds in another process."""
    asked = json.dumps({"config": config.model_dump(mode="json"), "topology": topology.name, "sampling": sampling})
    command = [sys.executable, "-m", "jaxbooth.plan.compile_child"]
    done = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailure(f"compiling for {topology.name} failed: {reason}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if "error" in facts:
        raise UserError(facts["error"])
    return facts


def child_environment(topology: Topology) -> dict[str, str]:
    """Returns the environment in which JAX has, or can describe, a topology's devices.

    Raises:
        UserError: it cannot.
    """
    if topology.is_here:
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


def train_cost(config: Config, facts: dict[str, Any], estimated: StepCost) -> StepCost:
    """Returns what a compiler's facts say of one step on one device."""
    held, train = dict(facts["held"]), facts["train"]
    resident = held.pop("resident")
    code = train.get("code_bytes", 0)
    activations = program_bytes(train) - code - sum(held.values())  # the padding of the arrays included
    memory = held | {"frozen": held["frozen"] + resident, "activations": activations, "program": code}
    if "exceeds" in train:
        return estimated._replace(memory=memory)
    flops = (train["flops"] or 0.0) + train["uncounted_flops"]
    moved = {kind: float(found["bytes"]) for kind, found in train["collectives"].items()}
    return StepCost(memory, flops, step_bytes_accessed(config, facts), moved)


def program_bytes(program: dict[str, Any]) -> float:
    """Returns the memory that a program occupies, arguments and results included."""
    if "exceeds" in program:
        return program["exceeds"]
    written = program["output_bytes"] - program["alias_bytes"]
    return program["argument_bytes"] + written + program["temp_bytes"] + program["code_bytes"]


def step_bytes_accessed(config: Config, facts: dict[str, Any]) -> float:
    """Returns the bytes that a step moves. XLA counts one micro-batch; the others move all but the optimizer's bytes.

    An update reads parameters, state and gradients and writes the first two.
    """
    counted, held = facts["train"]["bytes_accessed"] or 0.0, facts["held"]
    update = 3 * held["parameters"] + 2 * held["optimizer"]
    return counted + (config.train.gradient_accumulation_steps - 1) * max(0.0, counted - update)


def sampling_cost(facts: dict[str, Any]) -> tuple[float, float | None]:
    """Returns the memory of a device while it draws, the run's other arrays included, and the FLOPs of a batch."""
    sampling, held = facts["sampling"], sum(facts["held"].values())
    own = program_bytes(sampling) - sampling["params_bytes"]
    return held + own, None if "exceeds" in sampling else (sampling["flops"] or 0.0) + sampling["uncounted_flops"]
