"""What the records of the study say together: means, and differences with intervals over subjects and seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from study.plan import BASE, BASELINE, SETTINGS, SUBJECTS, plan

from jaxbooth.metrics.bootstrap import Estimate, bootstrap_mean

Record = dict[str, Any]
METRICS = ("clip_i", "clip_t", "pres", "div", "drift")
COSTS = ("cpu_seconds", "class_images")


def read_records(published: Path, results: Path) -> dict[str, Record]:
    """Returns the records of the present plan by name: those of an earlier study, and what was measured since.

    Args:
        published: JSON of a study; need not exist.
        results: folder of files with one record each.
    """
    earlier = json.loads(published.read_text()) if published.exists() else {"plan": None}
    records = {one["name"]: one for one in earlier["records"]} if earlier["plan"] == plan() else {}
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        if record.pop("plan") == plan():
            records[record["name"]] = record
    return records


class Group(NamedTuple):
    """What is compared in one table.

    Attributes:
        base: metric -> (subjects, seeds) of the base model, whose images are the same for all seeds.
        runs: setting -> metric or cost -> (subjects, seeds).
    """

    base: dict[str, np.ndarray]
    runs: dict[str, dict[str, np.ndarray]]

    @property
    def num_seeds(self) -> int:
        """How many seeds every setting has."""
        return self.base[METRICS[0]].shape[1]


def group_of(records: Mapping[str, Record], model: str, trained: str) -> Group:
    """Returns the records of a base model and a way of training it.

    Settings that lack a subject in the first seed are left out, and then seeds that lack anything.
    """
    bases = {one["subject"]: one for one in records.values() if one["setting"] == BASE and one["model"] == model}
    runs = {
        (one["setting"], one["subject"], one["seed"]): one
        for one in records.values()
        if (one["model"], one.get("trained")) == (model, trained)
    }
    first, *later = sorted({seed for _, _, seed in runs}) or [0]
    settings = [setting for setting in SETTINGS if is_complete(runs, setting, first)]
    seeds = [first] + [seed for seed in later if all(is_complete(runs, setting, seed) for setting in settings)]
    base = {
        name: np.array([[bases[subject]["metrics"].get(name, 0.0)] * len(seeds) for subject in SUBJECTS])
        for name in METRICS
    }
    values = {}
    for setting in settings:
        of_setting = [[runs[setting, subject, seed] for seed in seeds] for subject in SUBJECTS]
        values[setting] = {name: values_of(of_setting, name) for name in (*METRICS, *COSTS)}
    return Group(base, values)


def is_complete(runs: Mapping[tuple[str, str, int], Record], setting: str, seed: int) -> bool:
    """Whether a setting has a seed with every subject."""
    return all((setting, subject, seed) in runs for subject in SUBJECTS)


def together(groups: Sequence[Group]) -> Group:
    """Returns all groups as one: each subject has the runs of all of them, and stays what is resampled.

    Settings that a group lacks are left out.
    """
    base = {name: np.concatenate([group.base[name] for group in groups], axis=1) for name in METRICS}
    runs = {
        setting: {
            name: np.concatenate([group.runs[setting][name] for group in groups], axis=1) for name in (*METRICS, *COSTS)
        }
        for setting in SETTINGS
        if all(setting in group.runs for group in groups)
    }
    return Group(base, runs)


def values_of(records: Sequence[Sequence[Record]], name: str) -> np.ndarray:
    """Returns one figure of every record, in the same order."""
    return np.array([[one["metrics"].get(name, one.get(name)) for one in row] for row in records], float)


def change(group: Group, setting: str, metric: str) -> Estimate:
    """Returns the difference to the base model, paired by subject."""
    return bootstrap_mean(list(group.runs[setting][metric] - group.base[metric]))


def difference(group: Group, setting: str, metric: str) -> Estimate:
    """Returns the difference to the paper's prior, paired by subject and seed."""
    return bootstrap_mean(list(group.runs[setting][metric] - group.runs[BASELINE][metric]))
