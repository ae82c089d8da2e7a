"""`jaxbooth plan`: what a run needs, before it starts."""

import contextlib
import json
import sys
from typing import Annotated

from tyro.conf import arg

from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.config import limits
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import show_table


class PlanArguments(Config):
    """Show what a run needs: memory, time, chip-hours. Takes every flag of `jaxbooth train`; needs no weights."""

    topology: str = "local"
    """Devices to plan for: local; cpu:N; a TPU slice such as v5e:2x4, v5e:8 or v5litepod-8 (v2, v3, v4, v5e, v5p, v6e,
    tpu7x); or GPUs such as a100-80gb:8 (t4, v100, v100-32gb, l4, l40s, a10, a10g, a40, a6000, a100-40gb, a100-80gb,
    h100, h100-pcie, h200, b200, and GeForce cards from rtx3060 to rtx5090)."""
    num_subjects: Annotated[limits.SubjectCount | None, arg(name="subjects")] = None
    """Plan that many subjects of `jaxbooth train-many`: how many train side by side, and how long all of them take."""
    slots: limits.SlotCount | None = None
    """With --subjects: how many train side by side; default: the most that fit."""
    compile: bool = False
    """Also compile the train step and the sampling step for them with XLA; TPUs need not be present. Takes minutes."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print JSON, for programs."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return Config(**{key: getattr(self, key) for key in Config.model_fields})


def plan_command(argv: list[str]) -> None:
    """Prints a plan, as a table or as JSON.

    Raises:
        UserError: an unknown topology, a mesh that does not fit it, or libtpu is missing.
    """
    arguments = parse(PlanArguments, argv, "jaxbooth plan [CONFIG]", PlanArguments(**dict(starting_config(argv))))
    from jaxbooth.plan.hardware import find_topology
    from jaxbooth.plan.plan import make_plan
    from jaxbooth.plan.report import plan_json, plan_table

    with contextlib.redirect_stdout(sys.stderr) if arguments.as_json else contextlib.nullcontext():
        topology, subjects = find_topology(arguments.topology), arguments.num_subjects
        plan = make_plan(arguments.config, topology, arguments.compile, subjects, arguments.slots)
    if arguments.as_json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        show_table(plan_table(plan))
