"""`jaxbooth plan`: arguments in, a plan out."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from tyro.conf import arg

from jaxbooth.base.model import BaseModel, check_resolution
from jaxbooth.base.trainable import check_rank
from jaxbooth.config.rules import check_rows, ineffective_options
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import show_table
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.advise import suggest
from jaxbooth.plan.compile import Compiled, compile_plan
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.measure import measure_step, reason_not_to_measure
from jaxbooth.plan.report import Plan, plan_json, plan_table
from jaxbooth.plan.roofline import expected_run, roofline
from jaxbooth.plan.settle import resolve_remat
from jaxbooth.plan.topology import Topology, find_topology


class PlanArguments(Config):
    """Say what a run would need: memory, time, chip-hours. Takes every flag of `jaxbooth train`; no weights needed."""

    topology: str = "local"
    """Devices to plan for: local; cpu:N; a TPU slice such as v5e:2x4 or v5litepod-8 (v2, v3, v4, v5e, v5p, v6e, tpu7x);
    or GPUs such as a100-80gb:8 (t4, v100, v100-32gb, l4, l40s, a10, a10g, a40, a6000, a100-40gb, a100-80gb, h100,
    h100-pcie, h200, b200, and GeForce cards from rtx3060 to rtx5090)."""
    compile: bool = False
    """Also compile the train step and the sampling step for them with XLA; TPUs need not be present. Takes minutes."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print JSON, for programs."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return Config(**{key: getattr(self, key) for key in Config.model_fields})


def plan_command(arguments: PlanArguments) -> None:
    """Plans and prints.

    Raises:
        UserError: an unknown topology, a mesh that does not fit it, or libtpu is missing.
    """
    with contextlib.redirect_stdout(sys.stderr) if arguments.as_json else contextlib.nullcontext():
        plan = make_plan(arguments.config, find_topology(arguments.topology), arguments.compile)
    if arguments.as_json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        show_table(plan_table(plan))


def make_plan(config: Config, topology: Topology, compiles: bool = False) -> Plan:
    """Estimates a run on a topology and, if asked, compiles it.

    Raises:
        UserError: the configuration or the mesh cannot be used; see also `compile_plan`.
        RunFailure: the compiler failed.
    """
    check_rows(config)
    for problem in ineffective_options(config):
        raise UserError(problem)
    asked, (config, base) = config, abstract_base(config, topology.platform)
    check_resolution(base, config.resolution, "--data.resolution")
    check_rank(base, config)
    config, estimated = resolve_remat(config, base, topology)
    guess, compiled = estimated.at(), None
    if compiles:
        settled = asked.train.model_copy(update={"remat": config.train.remat})
        compiled = compile_plan(asked.model_copy(update={"train": settled}), topology, guess)
        estimated = scaled(estimated, compiled)
    figures = compiled.figures if compiled else guess
    bound = roofline(figures, topology.chip, config.mesh.fsdp)
    unmeasured = reason_not_to_measure(estimated, topology, compiles) if bound.seconds is None else None
    measured = measure_step(config, base, topology) if bound.seconds is None and not unmeasured else None
    return Plan(
        config=config,
        topology=topology,
        estimated=guess,
        figures=figures,
        compiled=compiled,
        largest=estimated.largest_batch(),
        bound=bound,
        measured=measured,
        unmeasured=unmeasured,
        run=expected_run(config, topology, bound, measured),
        advice=list(advice(config, base, estimated)),
    )


def scaled(estimated: Estimate, compiled: Compiled) -> Estimate:
    """Lets an estimate speak for other batch sizes of a compiled step.

    What a step needs beyond the arrays that are always there is taken to stand in the same proportion to the estimate,
    which is expressed as a smaller or larger memory of the device.
    """
    limit, held = estimated.topology.chip.memory, sum(estimated.held.values())
    real, guess = compiled.figures.hbm_bytes - held, estimated.at().hbm_bytes - held
    if limit is None or real <= 0 or guess <= 0:
        return estimated
    room = held + (limit - held) * guess / real
    return replace(estimated, topology=replace(estimated.topology, chip=estimated.topology.chip._replace(memory=room)))


def advice(config: Config, base: BaseModel, estimated: Estimate) -> Iterator[str]:
    """Yields what would help, in sentences."""
    yield from suggest(config, base, estimated.topology, estimated)
    rows, parts = config.train.batch_size + config.prior_rows, config.train.gradient_accumulation_steps
    filled = estimated.rows * estimated.shards * parts
    if filled > rows:
        yield (
            f"{rows} rows are padded to {filled} to fill the devices: --train.batch-size "
            f"{config.train.batch_size * filled // rows} costs no more"
        )
    if config.train.dtype == "float32" and estimated.topology.platform == "tpu":
        yield "--train.dtype bfloat16: the time above is at bfloat16's peak, and float32 takes several times longer"
