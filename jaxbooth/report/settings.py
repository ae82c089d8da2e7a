"""A run's settings beside their defaults, and its times, memory and disk use as far as it logged them."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flatten
from jaxbooth.console.numbers import format_metric
from jaxbooth.models.adapter_kinds import KINDS
from jaxbooth.report.run_data import RunData

ELSEWHERE = ("run_dir", "force", "distributed.")  # shown at the top, or about the machine and not the run


class Setting(NamedTuple):
    """One key of the configuration, with values as text.

    Attributes:
        values: of each run.
    """

    key: str
    values: tuple[str, ...]
    default: str

    @property
    def changed(self) -> tuple[bool, ...]:
        """Whether each run's value differs from the default."""
        return tuple(value != self.default for value in self.values)

    @property
    def differs(self) -> bool:
        """Whether the runs differ."""
        return len(set(self.values)) > 1


def compare_settings(configs: Sequence[Config]) -> list[Setting]:
    """Returns all settings of one or several runs, in schema order."""
    flat = [flatten(config) for config in configs]
    return [
        Setting(key, tuple(format_value(values[key]) for values in flat), format_value(default))
        for key, default in flatten(Config()).items()
        if not key.startswith(ELSEWHERE)
    ]


def format_value(value: Any) -> str:
    """Writes a value as a YAML file would, without its punctuation."""
    match value:
        case None | ():
            return "not set"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case tuple():
            return "\n".join(map(format_value, value))
        case BaseModel():
            return ", ".join(f"{key}: {format_value(field)}" for key, field in value if field is not None)
        case PurePath() | str() | int():
            return str(value)
    return repr(value)


def describe_trained(config: Config) -> str:
    """Says what of the model is trained."""
    tokens = ", ".join(config.text.placeholder_tokens)
    if config.text.is_textual_inversion:
        return f"the placeholder tokens {tokens}"
    parts = [
        f"{KINDS[config.lora.kind].title} of rank {config.lora.rank}"
        if config.lora.rank
        else "the whole UNet or transformer"
    ]
    parts += ["text encoder"] if config.train.text_encoder else []
    parts += [f"the placeholder tokens {tokens}"] if tokens else []
    return ", ".join(parts)


def run_statistics(run: RunData) -> dict[str, str]:
    """Returns name -> time, memory or size as text; what a run did not log is left out."""
    return step_times(run) | logged_memory(run) | disk_use(run)


def step_times(run: RunData) -> dict[str, str]:
    """Returns how long the steps took, by the images/s that each of them logged."""
    logged = run.curves.get("images_per_second")
    if logged is None or not (logged.values > 0).any():
        return {}
    per_second = logged.values[logged.values > 0]
    seconds = run.config.rows / per_second
    return {
        "images/s, median": f"{np.median(per_second):.3g}",
        "a step, median": format_run_time(float(np.median(seconds))),
        "all steps": format_run_time(float(seconds.sum())),
    }


def logged_memory(run: RunData) -> dict[str, str]:
    """Returns the largest value of each metric about memory."""
    logged = {name: curve for name, curve in (run.curves | run.validations).items() if "memory" in name}
    return {f"{name.replace('_', ' ')}, largest": f"{curve.values.max():.4g}" for name, curve in logged.items()}


def disk_use(run: RunData) -> dict[str, str]:
    """Returns the sizes of the checkpoints and of the export."""
    sizes = {}
    if run.checkpoints:
        steps = ", ".join(map(str, run.checkpoints))
        sizes["checkpoints"] = f"{format_metric(sum(run.checkpoints.values()), 'B')} (step {steps})"
    if run.exported:
        sizes["export"] = format_metric(run.exported, "B")
    return sizes


def format_run_time(seconds: float) -> str:
    """Returns a time as a report shows it, such as `2 h 42 min`."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
