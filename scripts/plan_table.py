"""What SD 1.5 and SDXL need on TPUs: the table of the docs, estimated, with the rows that a compiler has confirmed.

    python scripts/plan_table.py                                      estimates all rows; writes plan/table.{md,json}
    python scripts/plan_table.py --compile sd15-full:v5e:2x2 ...      compiles rows, one after another (needs libtpu)

A compiled row leaves scripts/plan/RUN-TOPOLOGY.json, which the table then shows beside the estimate. Compiling a
full-size step takes many minutes on two cores. Batch sizes are per chip: a larger slice takes a larger batch.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import GIB
from jaxbooth.plan.compile import compile_programs, train_cost
from jaxbooth.plan.hardware import Topology, find_topology
from jaxbooth.plan.plan import make_plan
from jaxbooth.plan.report import Plan, plan_json
from jaxbooth.plan.roofline import StepCost, expected_run, roofline
from jaxbooth.storage.files import write_json, write_text

FOLDER = Path(__file__).parent / "plan"
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v6e:2x2", "v5p:2x2x1", "v4:2x2x1")


class Case(NamedTuple):
    """A run of the table: instance images per chip, with as many prior images, and changes to the shipped one."""

    shipped: str
    images: int
    changes: dict[str, dict[str, Any]]


CASES = {
    "sd15-full": Case("sd15", 2, {"mesh": {"fsdp": 4}, "train": {"remat": "blocks"}}),
    "sd15-full-no-remat": Case("sd15", 1, {"mesh": {"fsdp": 4}, "train": {"remat": "none"}}),
    "sd15-lora": Case("sd15-lora", 2, {}),
    "sdxl-full": Case("sdxl-lora", 1, {"mesh": {"fsdp": 4}, "lora": {"rank": None}, "train": {"remat": "blocks"}}),
    "sdxl-lora": Case("sdxl-lora", 1, {"train": {"remat": "blocks"}}),
}
HEAD = (
    "| run | slice | images per chip | how | fits | GiB per chip | largest batch per chip | TFLOP per chip "
    "| GB moved per chip | roofline | expected images/s | hours (chip-hours) for 1000 steps |\n" + "|---" * 12 + "|"
)


def config_of(name: str, topology: Topology) -> Config:
    """Returns the configuration of a row of the table."""
    case = CASES[name]
    raw = load_config(case.shipped).model_dump(mode="json")
    for section, values in case.changes.items():
        raw[section] |= values
    raw["train"]["batch_size"] = case.images * topology.devices
    return Config.model_validate(raw)


def path_of(name: str, topology: Topology) -> Path:
    """Returns where the compiler's analyses of a row are kept."""
    return FOLDER / f"{name}-{topology.name.replace(':', '-')}.json"


def compile_row(name: str, topology: Topology, sampling: bool) -> None:
    """Compiles one row's step and keeps the compiler's analyses."""
    config = config_of(name, topology)
    analyses = compile_programs(config, topology, sampling)
    write_json(path_of(name, topology), analyses)
    print(f"{name} on {topology.name}: compiled in {analyses['train']['compile_seconds']:.0f} s", flush=True)


def table_row(name: str, plan: Plan, cost: StepCost, how: str, fits: bool, largest: int | None) -> str:
    """Returns one row in Markdown."""
    bound = roofline(cost, plan.topology.chip, plan.config.mesh.fsdp)
    run = expected_run(plan.config.train.steps, 2 * plan.config.train.batch_size, plan.topology, bound)
    limit = plan.topology.chip.memory
    assert limit
    assert bound.seconds
    return (
        f"| {name} | {plan.topology.name} | {2 * CASES[name].images} | {how} | {'yes' if fits else '**no**'} "
        f"| {cost.hbm_bytes / GIB:.2f} of {limit / GIB:.2f} | {'' if largest is None else largest} "
        f"| {cost.flops / 1e12:.2f} | {cost.bytes_accessed / 1e9:.0f} "
        f"| {bound.seconds * 1e3:.0f} ms, {bound.bound} | {run.images_per_second:.0f} "
        f"| {run.hours:.2f} ({run.chip_hours:.2f}) |"
    )


def compiled_row(name: str, plan: Plan, errors: list[str]) -> str | None:
    """Returns the row that a compiler has confirmed, if there is one, and notes the estimate's error."""
    path = path_of(name, plan.topology)
    if not path.exists():
        return None
    analyses = json.loads(path.read_text())
    cost = train_cost(analyses, plan.config.train.gradient_accumulation_steps, plan.estimated)
    limit = plan.topology.chip.memory
    assert limit
    changes = [
        f"{getattr(plan.estimated, key) / getattr(cost, key) - 1:+.1%}"
        for key in ("hbm_bytes", "flops", "bytes_accessed")
    ]
    errors.append(f"| {name} | {plan.topology.name} | {' | '.join(changes)} |")
    return table_row(name, plan, cost, "**compiled**", cost.hbm_bytes <= limit, None)


def main() -> None:
    """Compiles what is asked for, or estimates everything, writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="*", default=[], metavar="RUN:TOPOLOGY", help=f"runs: {', '.join(CASES)}")
    parser.add_argument("--sampling", action="store_true", help="also compile the sampling of images")
    arguments = parser.parse_args()
    for row in arguments.compile:
        name, _, topology = row.partition(":")
        compile_row(name, find_topology(topology), arguments.sampling)
    if not arguments.compile:
        write_table()


def write_table() -> None:
    """Estimates every row, puts the compiled ones beside them, writes and prints the result."""
    rows, plans, errors = [HEAD], [], []
    for name in CASES:
        for topology in map(find_topology, TOPOLOGIES):
            plan = make_plan(config_of(name, topology), topology)
            plans.append({"run": name} | plan_json(plan))
            rows.append(table_row(name, plan, plan.cost, "estimated", plan.fits, plan.largest_batch))
            rows += filter(None, [compiled_row(name, plan, errors)])
    errors = ["| run | slice | memory | FLOPs | bytes moved |\n|---|---|---|---|---|", *errors]
    text = "\n".join([*rows, "", "The estimate's error against the compiler:", "", *errors, ""])
    write_json(FOLDER / "table.json", plans)
    write_text(FOLDER / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
