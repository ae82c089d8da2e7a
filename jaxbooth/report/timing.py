"""Time, memory and disk: what a run's logs and its folder say, and nothing that has to be guessed."""

import numpy as np

from jaxbooth.plan.report import format_metric
from jaxbooth.report.run_data import RunData


def timing_facts(run: RunData) -> dict[str, str]:
    """Returns name -> value, in words; what a run does not say is left out."""
    return rates(run) | memory(run) | sizes(run)


def rates(run: RunData) -> dict[str, str]:
    """Says how fast the steps were, by the images/s that each of them logged."""
    found = run.curves.get("images_per_second")
    if found is None or not (found.values > 0).any():
        return {}
    per_second = found.values[found.values > 0]
    seconds = (run.config.train.batch_size + run.config.prior_rows) / per_second
    return {
        "images/s, median": f"{np.median(per_second):.3g}",
        "a step, median": duration(float(np.median(seconds))),
        "all steps": duration(float(seconds.sum())),
    }


def memory(run: RunData) -> dict[str, str]:
    """Says the largest value of what was logged about memory."""
    logged = {name: curve for name, curve in (run.curves | run.figures).items() if "memory" in name}
    return {f"{name.replace('_', ' ')}, largest": f"{curve.values.max():.4g}" for name, curve in logged.items()}


def sizes(run: RunData) -> dict[str, str]:
    """Says what lies on the disk."""
    steps = ", ".join(map(str, run.checkpoints))
    found = {"checkpoints": f"{format_metric(sum(run.checkpoints.values()), 'B')} (step {steps})"} if steps else {}
    return found | ({"export": format_metric(run.exported, "B")} if run.exported else {})


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
