"""FLOPs that XLA's count leaves out: those of kernels, which it cannot see into, and all but one turn of each loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxbooth.plan.flops import KERNEL, equation_flops
from jaxbooth.plan.jaxpr_memory import INLINED, chosen_branch, needed_equations

BODIES = (*INLINED, "body_jaxpr")


@dataclass(frozen=True)
class Place:
    """Where in the program the count is.

    Attributes:
        platform: by which branches are chosen: tpu, cuda, cpu, or empty for TPUs without kernels.
        unknown: turns of a loop whose length is data.
        turns: of the loops around.
        share: of the work that one device does: all of it inside of `shard_map`.
        seen: whether XLA sees the equations at all.
    """

    platform: str
    unknown: int
    turns: int = 1
    share: float = 1.0
    seen: bool = True


def uncounted_flops(jaxpr: Any, platform: str, devices: int, turns: int = 1) -> float:
    """Returns one device's FLOPs of a traced program that `cost_analysis` does not count.

    A kernel is counted by its grid and its body, so that what it computes again is included; cuDNN's, which has no
    body here, as the form of attention that stands in for it.

    Args:
        jaxpr: closed; `jitted.trace(...).jaxpr`.
        platform: see `Place`.
        devices: that share the work evenly.
        turns: of a loop whose length is data.
    """
    return count(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), Place(platform, turns, share=1 / devices))


def count(jaxpr: Any, wanted: Sequence[bool], place: Place) -> float:
    """Counts one body."""
    total = 0.0
    for equation, asked in needed_equations(jaxpr, wanted):
        name, params = equation.primitive.name, equation.params
        if name == "cond":
            branch, inside = chosen_branch(params, place.platform), place
            if place.platform == "cuda":  # the form elsewhere has the products of cuDNN's
                branch, inside = params["branches"][-1], replace(place, seen=branch is params["branches"][-1])
            total += count(branch.jaxpr, asked, inside)
            continue
        is_seen = place.seen and name != KERNEL
        total += place.share * equation_flops(equation)[1] * (place.turns - is_seen)
        for key in BODIES if name != KERNEL else ():
            body = getattr(params.get(key), "jaxpr", params.get(key))
            if body is not None:
                total += count(body, wanted_of(body, asked), inner(place, equation))
    return total


def wanted_of(body: Any, asked: Sequence[bool]) -> Sequence[bool]:
    """Returns which results of a body are wanted; a loop carries all of its own on."""
    return asked if len(asked) == len(body.outvars) else [True] * len(body.outvars)


def inner(place: Place, equation: Any) -> Place:
    """Returns the place of an equation's body."""
    if equation.primitive.name == "scan":
        return replace(place, turns=place.turns * equation.params["length"])
    if equation.primitive.name == "while":
        return replace(place, turns=place.turns * place.unknown)
    if equation.primitive.name == "shard_map":
        return replace(place, share=1.0)
    return place
