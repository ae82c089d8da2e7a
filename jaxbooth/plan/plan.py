"""What a run needs and how long it takes, before it starts: estimated, compiled or timed."""

from collections.abc import Iterator
from dataclasses import replace

from jaxbooth.base.adapters import check_adapters
from jaxbooth.base.model import BaseModel, check_resolution
from jaxbooth.config.rules import check_lora, check_quantization, check_rows, ineffective_options
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.compile import Compiled, compile_plan
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.fit import apply_changes, resolve_remat, suggest
from jaxbooth.plan.hardware import Topology
from jaxbooth.plan.measure import measure_step, reason_not_to_measure
from jaxbooth.plan.report import Plan
from jaxbooth.plan.roofline import expected_run, roofline
from jaxbooth.plan.subjects import plan_subjects


def make_plan(
    config: Config,
    topology: Topology,
    compiles: bool = False,
    subjects: int | None = None,
    slots: int | None = None,
) -> Plan:
    """Estimates a run on a topology and, if asked, compiles it.

    Args:
        subjects: how many there are of `train-many`, of which the run is that of one; what is compiled then is the step
            of all slots.
        slots: subjects that train side by side; default: the most that fit.

    Raises:
        UserError: the configuration or the mesh cannot be used; see also `compile_plan`.
        RunFailure: the compiler failed.
    """
    check_rows(config)
    if subjects and not config.lora.rank:
        raise UserError("--subjects: train-many teaches every subject a LoRA; set --lora.rank, such as 16.")
    for problem in ineffective_options(config):
        raise UserError(problem)
    check_lora(config)
    check_quantization(config)
    given = config
    config, base = abstract_base(config, topology.platform)
    check_resolution(base, config.resolution, "--data.resolution")
    check_adapters(base, config)
    config, estimate = resolve_remat(config, base, topology)
    estimated, compiled = estimate.at(), None
    if compiles and not subjects:
        compiled = compile_plan(apply_changes(given, {"train.remat": config.train.remat}), topology, estimated)
        estimate = scale_to_compiled(estimate, compiled)
    cost = compiled.cost if compiled else estimated
    bound = roofline(cost, topology.chip, config.mesh.fsdp)
    unmeasured, measured = None, None
    if bound.seconds is None:
        unmeasured = reason_not_to_measure(estimate, topology, compiles)
        measured = None if unmeasured else measure_step(config, base, topology)
    batch_size = config.rows
    return Plan(
        config=config,
        topology=topology,
        estimated=estimated,
        cost=cost,
        compiled=compiled,
        encoding=estimate.encoding,
        largest_batch=estimate.largest_batch(),
        bound=bound,
        measured=measured,
        unmeasured=unmeasured,
        run=expected_run(config.train.steps, batch_size, topology, bound, measured),
        advice=list(advice(config, base, estimate)),
        subjects=plan_subjects(config, base, estimate, subjects, slots, measured, compiles) if subjects else None,
    )


def scale_to_compiled(estimate: Estimate, compiled: Compiled) -> Estimate:
    """Adapts an estimate to a compiled step, so that it can tell the memory of other batch sizes.

    What a step needs beyond the arrays that are always there is taken to stand in the same proportion to the estimate,
    which is expressed as a smaller or larger memory of the device.
    """
    chip, persistent = estimate.topology.chip, sum(estimate.persistent.values())
    actual, estimated = compiled.cost.hbm_bytes - persistent, estimate.at().hbm_bytes - persistent
    if chip.memory is None or actual <= 0 or estimated <= 0:
        return estimate
    memory = persistent + (chip.memory - persistent) * estimated / actual
    return replace(estimate, topology=replace(estimate.topology, chip=chip._replace(memory=memory)))


def advice(config: Config, base: BaseModel, estimate: Estimate) -> Iterator[str]:
    """Yields what would help, in sentences."""
    yield from (str(suggestion) for suggestion in suggest(config, base, estimate.topology, estimate))
    examples = config.rows
    padded = estimate.per_device_batch * estimate.shards * config.train.gradient_accumulation_steps
    if padded > examples:
        yield (
            f"{examples} images are padded to {padded} to fill the devices: --train.batch-size "
            f"{config.train.batch_size * padded // examples} costs no more"
        )
    if config.train.dtype == "float32" and estimate.topology.platform == "tpu":
        yield "--train.dtype bfloat16: the time above assumes bfloat16's peak, and float32 takes several times longer"
