"""A plan as JSON for programs and as a table for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import pluralize
from jaxbooth.console.numbers import format_duration, format_gib, format_metric, format_significant
from jaxbooth.plan.compile import Compiled
from jaxbooth.plan.hardware import Topology
from jaxbooth.plan.roofline import EFFICIENCY, ExpectedRun, Roofline, StepCost
from jaxbooth.plan.subjects import SubjectsPlan

MIN_SHOWN_BYTES = 2**17  # bytes of a kind of memory


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
        cost: of a step, by the compiler where it was asked, else as estimated.
        encoding: bytes that a device needs while prompts are encoded ahead, as estimated; 0 where they are not.
        measured: seconds of a step that was timed, on devices without peak figures; else None.
        unmeasured: why none was, a sentence, where nothing else tells the time.
        largest_batch: most instance images for each device that fit; None where the device's memory is unknown.
        advice: what helps, in sentences.
        subjects: of `train-many`, where that was asked.
    """

    config: Config
    topology: Topology
    estimated: StepCost
    cost: StepCost
    compiled: Compiled | None
    encoding: float
    largest_batch: int | None
    bound: Roofline
    measured: float | None
    unmeasured: str | None
    run: ExpectedRun
    advice: list[str]
    subjects: SubjectsPlan | None = None

    @property
    def needed(self) -> float:
        """Bytes that a device needs: to encode prompts, to train and, if compiled, to generate sample images."""
        return max(self.encoding, self.cost.hbm_bytes, self.compiled.sampling_bytes if self.compiled else 0)

    @property
    def fits(self) -> bool:
        """Whether a device has them; one of unknown memory does."""
        limit = self.topology.chip.memory
        return limit is None or self.needed <= limit


def plan_json(plan: Plan) -> dict[str, Any]:
    """Returns what `--json` prints; bytes, FLOPs and collectives are those of one device and one step."""
    cost, compiled = plan.cost, plan.compiled
    document: dict[str, Any] = {
        "model": plan.config.model,
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "chips": plan.topology.chips,
        "compiled": compiled is not None,
        "remat": plan.config.train.remat,
        "fits": plan.fits,
        "hbm_bytes": cost.hbm_bytes,
        "hbm_limit_bytes": plan.topology.chip.memory,
        "memory": cost.memory,
        "encoding_bytes": plan.encoding,
        "flops": cost.flops,
        "bytes_accessed": cost.bytes_accessed,
        "collectives": cost.collectives,
        "largest_batch_per_chip": plan.largest_batch,
        "roofline_seconds": plan.bound._asdict(),
        "bound": plan.bound.bound,
        "efficiency": EFFICIENCY,
        "measured": plan.measured is not None,
        **plan.run._asdict(),
        "advice": plan.advice,
    }
    if plan.subjects:
        many = plan.subjects
        document["subjects"] = {
            "subjects": many.subjects, "slots": many.slots, "hbm_bytes": many.cost.hbm_bytes, "flops": many.cost.flops,
            "bytes_accessed": many.cost.bytes_accessed, "roofline_seconds": many.bound._asdict(),
            "seconds_per_step": many.seconds_per_step, "subjects_per_hour": many.per_hour, "hours": many.hours,
            "chip_hours": many.chip_hours,
        }  # fmt: skip
    if compiled:
        document["estimated"] = {"hbm_bytes": plan.estimated.hbm_bytes} | plan.estimated._asdict()
        document["sampling"] = {"hbm_bytes": compiled.sampling_bytes, "flops": compiled.sampling_flops}
        document["compiler"] = compiled.analyses
    return document


def plan_table(plan: Plan) -> Table:
    """Returns the table."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in table_rows(plan):
        table.add_row(name, escape(value))
    return table


def table_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields the rows of the table."""
    topology, cost, config = plan.topology, plan.cost, plan.config
    how = "compiled by XLA" if plan.compiled else "estimated from shapes; --compile asks the compiler"
    yield "plan", f"{config.model} on {topology.name}, {pluralize(topology.chips, 'chip')}: {how}"
    yield "fits", verdict(plan)
    yield "remat", config.train.remat_policy
    parts = sorted(cost.memory.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{kind} {format_gib(size)}" for kind, size in parts if size >= MIN_SHOWN_BYTES)
    yield "memory", f"{format_gib(cost.hbm_bytes)} per device: {shown}"
    if plan.encoding:
        yield "prompts", f"{format_gib(plan.encoding)} per device while they are encoded, before the denoiser is loaded"
    if plan.compiled:
        yield "sampling", f"{format_gib(plan.compiled.sampling_bytes)} per device while sample images are generated"
    if plan.largest_batch is not None:
        yield "largest batch", describe_largest_batch(plan)
    yield "FLOPs per step", f"{format_metric(cost.flops, 'FLOP')} per device"
    yield "bytes moved", f"{format_metric(cost.bytes_accessed, 'B')} per device and step"
    if cost.collectives:
        sizes = ", ".join(f"{kind} {format_metric(size, 'B')}" for kind, size in cost.collectives.items())
        yield "collectives", f"{sizes} per device and step"
    yield from time_rows(plan)
    if plan.subjects:
        yield from subject_rows(plan.subjects)
    for sentence in plan.advice:
        yield "what helps", sentence


def subject_rows(many: SubjectsPlan) -> Iterator[tuple[str, str]]:
    """Yields the rows about many subjects."""
    if not many.slots:
        yield "slots", "not even one subject on each device fits"
        return
    parts = sorted(many.cost.memory.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{kind} {format_gib(size)}" for kind, size in parts if size >= MIN_SHOWN_BYTES)
    yield "slots", f"{pluralize(many.slots, 'subject')} side by side, {format_gib(many.cost.hbm_bytes)}: {shown}"
    if many.hours is None or many.chip_hours is None or many.per_hour is None or many.seconds_per_step is None:
        return
    length, chip_hours = format_duration(many.hours * 3600), format_significant(many.chip_hours)
    rate, step = format_significant(many.per_hour), format_duration(many.seconds_per_step)
    speed = f"{rate} an hour, {step} per step of all slots"
    yield "all subjects", f"{many.subjects:,} in {length}, {chip_hours} chip-hours: {speed}"


def time_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields the rows about time."""
    run = plan.run
    if plan.unmeasured:
        yield "time", plan.unmeasured
    elif plan.measured is not None:
        yield "measured", f"{format_rate(run)}: one step at a time on this machine"
        yield "the run", format_length(plan)
    else:
        yield from roofline_rows(plan)


def roofline_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields the rows about time on devices whose peaks are known."""
    bound = plan.bound
    assert bound.seconds is not None
    each = ", ".join(
        f"{name} {format_duration(seconds)}" for name, seconds in bound._asdict().items() if seconds is not None
    )
    yield "roofline", f"{format_duration(bound.seconds)} per step, bound by {bound.bound} ({each})"
    yield "expected", f"{format_rate(plan.run)}, assuming {EFFICIENCY:.0%} of the roofline"
    yield "the run", format_length(plan)


def format_rate(run: ExpectedRun) -> str:
    """Writes a run's speed; it is known."""
    assert run.seconds_per_step is not None
    assert run.images_per_second is not None
    return f"{format_significant(run.images_per_second)} images/s, {format_duration(run.seconds_per_step)} per step"


def format_length(plan: Plan) -> str:
    """Writes how long a run takes; its speed is known."""
    run = plan.run
    assert run.hours is not None
    assert run.chip_hours is not None
    length, chip_hours = format_duration(run.hours * 3600), format_significant(run.chip_hours)
    steps = plan.config.train.steps
    return f"{steps} steps in {length}, {chip_hours} chip-hours; class images, compiling and sample images come on top"


def verdict(plan: Plan) -> str:
    """Says whether a run fits, and by how much."""
    limit = plan.topology.chip.memory
    if limit is None:
        return f"unknown: jaxbooth does not know the memory of {plan.topology.chip.name}"
    share = f"{format_gib(plan.needed)} of {format_gib(limit)}"
    if plan.fits:
        return f"yes, {share}: {format_gib(limit - plan.needed)} to spare"
    return f"no, {share}: {format_gib(plan.needed - limit)} too much"


def describe_largest_batch(plan: Plan) -> str:
    """Says how many instance images a device can take in a step."""
    source = ", by the estimate scaled to the compiled step" if plan.compiled else ""
    if not plan.largest_batch:
        return f"not even one instance image per device fits{source}"
    prior = " with their prior rows" if plan.config.prior_rows else ""
    return f"{pluralize(plan.largest_batch, 'instance image')} per device{prior}{source}"
