"""FLOPs that XLA's cost analysis leaves out: those of kernels, and all but one pass through each loop's body."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxbooth.plan.flops import KERNEL, equation_flops
from jaxbooth.plan.jaxpr_memory import INLINED, needed_equations, platform_branch

BODIES = (*INLINED, "body_jaxpr")


@dataclass(frozen=True)
class Context:
    """What is around an equation.

    Attributes:
        platform: by which branches are chosen: tpu, cuda, cpu, or empty for TPUs without kernels.
        unknown_trip_count: of a loop whose length is data.
        trip_count: of all loops around.
        share: of the work that one device does: all of it inside of `shard_map`.
        is_visible: whether XLA sees the equations at all.
    """

    platform: str
    unknown_trip_count: int
    trip_count: int = 1
    share: float = 1.0
    is_visible: bool = True


def uncounted_flops(jaxpr: Any, platform: str, devices: int, unknown_trip_count: int = 1) -> float:
    """Returns one device's FLOPs of a traced program that `cost_analysis` does not count.

    A kernel is counted by its grid and its body, so that what it computes again is included; cuDNN's, which has no
    body here, as the attention that other platforms use in its place.

    Args:
        jaxpr: closed; `jitted.trace(...).jaxpr`.
        platform: see `Context`.
        devices: that share the work evenly.
        unknown_trip_count: of a loop whose length is data.
    """
    context = Context(platform, unknown_trip_count, share=1 / devices)
    return count_body(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), context)


def count_body(jaxpr: Any, wanted: Sequence[bool], context: Context) -> float:
    """Counts the equations that lead to a wanted result, and those of their bodies."""
    total = 0.0
    for equation, needed in needed_equations(jaxpr, wanted):
        name, params = equation.primitive.name, equation.params
        if name == "cond":
            branch, inside = platform_branch(params, context.platform), context
            if context.platform == "cuda":  # the last branch has the same products as cuDNN's kernel
                is_last = branch is params["branches"][-1]
                branch, inside = params["branches"][-1], replace(context, is_visible=is_last)
            total += count_body(branch.jaxpr, needed, inside)
            continue
        counted_by_xla = context.is_visible and name != KERNEL
        total += context.share * equation_flops(equation)[1] * (context.trip_count - counted_by_xla)
        for key in BODIES if name != KERNEL else ():
            body = getattr(params.get(key), "jaxpr", params.get(key))
            if body is not None:
                # A loop carries all of its body's results on.
                body_wanted = needed if len(needed) == len(body.outvars) else [True] * len(body.outvars)
                total += count_body(body, body_wanted, context_of_body(context, equation))
    return total


def context_of_body(context: Context, equation: Any) -> Context:
    """Returns the context of the equations in an equation's body."""
    if equation.primitive.name == "scan":
        return replace(context, trip_count=context.trip_count * equation.params["length"])
    if equation.primitive.name == "while":
        return replace(context, trip_count=context.trip_count * context.unknown_trip_count)
    if equation.primitive.name == "shard_map":
        return replace(context, share=1.0)
    return context
