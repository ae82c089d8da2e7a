"""What each choice does to the five metrics, on an embedded base model: the table and the figure of the docs.

    python scripts/ablation.py --photos ../shared/dreambooth --workers 2

Trains every setting on every subject with several seeds (about a minute each on one CPU core), measures all of them
with `jaxbooth evaluate`, and writes docs/ablation.md, docs/ablation.png and docs/ablation.json; for `--model demo-flow`
docs/ablation-flow.*. What is there already is not trained again. The embedded cat is always among the subjects;
--photos adds folders of the DreamBooth dataset.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from jaxbooth import load_config, train
from jaxbooth.config.run_config import Config
from jaxbooth.evaluation.evaluate import evaluate
from jaxbooth.metrics.bootstrap import Estimate, bootstrap_mean
from jaxbooth.storage.files import write_json, write_text

DOCS = Path(__file__).parents[1] / "docs"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "no prior": {"prior": {"weight": 0.0}},
    "prior 0.5": {"prior": {"weight": 0.5}},
    "prior 1": {},
    "prior 2": {"prior": {"weight": 2.0}},
    "prior 1, text encoder": {"train": {"text_encoder": True}, "text": {"learning_rate": 2e-5}},
    "LoRA, no prior": {"prior": {"weight": 0.0}, "lora": {"rank": 16}},
    "LoRA, prior 1": {"lora": {"rank": 16}},
}
FLOW_SETTINGS = ("no prior", "prior 1", "LoRA, no prior", "LoRA, prior 1")  # of demo-flow, whose text encoder is fixed
PAGES = {"demo": "ablation", "demo-flow": "ablation-flow"}  # model -> stem of the written files
BASE = "base model"
METRICS = ("clip_i", "clip_t", "pres", "div")


class Task(NamedTuple):
    """A subject that a model learns; `photos` None is the embedded cat."""

    model: str
    name: str
    noun: str
    photos: Path | None

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of what is compared."""
        return FLOW_SETTINGS if self.model == "demo-flow" else tuple(SETTINGS)

    def config(self, out: Path, setting: str, seed: int, steps: int) -> Config:
        """Returns the run of one setting and seed."""
        raw = load_config(self.model).model_dump(mode="json")
        if self.photos:
            raw["data"] |= {"instance_dir": str(self.photos), "instance_prompt": f"a sks {self.noun}"}
            raw["data"] |= {"class_prompt": f"a {self.noun}"}
        raw["train"] |= {"steps": steps, "checkpoint_every": steps}
        raw["validation"] |= {"every": steps, "images_per_prompt": 2, "steps": 10}
        for section, values in SETTINGS[setting].items():
            raw[section] |= values
        raw["data"]["class_dir"] = str(out / self.name / "class") if raw["prior"]["weight"] else None
        run_dir = out / self.name / f"{setting.replace(', ', '-').replace(' ', '-')}-{seed}"
        return Config.model_validate(raw | {"seed": seed, "run_dir": str(run_dir), "export": False})


def tasks(model: str, photos: Path | None, names: list[str]) -> list[Task]:
    """Returns the subjects."""
    found = [Task(model, "fluent-cat", "cat", None)]
    nouns = {name: name.split("_")[-1].rstrip("0123456789") for name in names}
    return found + [Task(model, name, noun, photos / name) for name, noun in nouns.items() if photos]


def learn(task: Task, out: Path, seeds: int, steps: int) -> None:
    """Trains and measures everything about one subject."""
    runs = {}
    for seed in range(seeds):
        for setting in task.settings:
            config = task.config(out, setting, seed, steps)
            train(config)
            runs[config.run_dir] = (setting, seed)
    first, *others = runs
    evaluate(
        first,
        compare=others,
        images_per_prompt=2,
        num_class_images=16,
        subject=f"sks {task.noun}",
        noun=task.noun,
        steps=10,
        out=out / task.name / "evaluation",
    )


def measured(task: Task, out: Path, seeds: int, steps: int) -> dict[str, dict[str, list[np.ndarray]]]:
    """Returns setting -> metric -> one array for each seed: the means of its prompts."""
    found = json.loads((out / task.name / "evaluation" / "evaluation.json").read_text())
    names = {
        str(Path(task.config(out, setting, seed, steps).run_dir).absolute()): setting
        for setting in task.settings for seed in range(seeds)
    }  # fmt: skip
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for model in found["models"]:
        setting = BASE if model["step"] is None else names[str(Path(model["source"]).absolute())]
        for metric in METRICS:
            means = [one["metrics"][metric]["mean"] for one in model["prompts"] if metric in one["metrics"]]
            scores.setdefault(setting, {}).setdefault(metric, []).append(np.array(means))
    return scores


class Row(NamedTuple):
    """One metric of one setting: its mean, and the difference to the base model on the same prompts and seeds."""

    mean: float
    change: Estimate


def together(found: list[dict[str, dict[str, list[np.ndarray]]]]) -> dict[str, dict[str, Row]]:
    """Returns setting -> metric -> what all subjects and seeds say together."""
    results: dict[str, dict[str, Row]] = {}
    for setting in (name for name in SETTINGS if name in found[0]):
        for metric in METRICS:
            runs = [run for scores in found for run in scores[setting][metric]]
            changes = [run - scores[BASE][metric][0] for scores in found for run in scores[setting][metric]]
            results.setdefault(setting, {})[metric] = Row(float(np.mean(runs)), bootstrap_mean(changes))
    return results


def base_means(found: list[dict[str, dict[str, list[np.ndarray]]]]) -> dict[str, float]:
    """Returns the base model's means."""
    return {metric: float(np.mean([scores[BASE][metric] for scores in found])) for metric in METRICS}


def table(results: dict[str, dict[str, Row]], base: dict[str, float]) -> str:
    """Returns the table in Markdown."""
    lines = ["| | CLIP-I (higher) | CLIP-T (higher) | PRES (lower) | DIV (higher) |", "|---|---|---|---|---|"]
    lines.append(f"| {BASE} | {' | '.join(f'{mean:.3f}' for mean in base.values())} |")
    for setting, row in results.items():
        cells = (
            f"{one.mean:.3f} ({one.change.mean:+.3f} [{one.change.low:+.3f}, {one.change.high:+.3f}])"
            for one in row.values()
        )
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Row]], path: Path) -> None:
    """Draws the change of each metric side by side, a row for each setting."""
    titles = ("CLIP-I: the subject", "CLIP-T: the prompt", "PRES: leakage into the class", "DIV: variety of the class")
    wanted = ("higher is better", "higher is better", "lower is better", "higher is better")
    figure, axes = plt.subplots(1, len(METRICS), figsize=(12, 3.4), sharey=True, layout="constrained")
    for axis, metric, title, better in zip(axes, METRICS, titles, wanted, strict=True):
        changes = [row[metric].change for row in results.values()]
        means = np.array([change.mean for change in changes])
        ends = np.array([[change.low, change.high] for change in changes], float).T
        axis.errorbar(means, range(len(means)), xerr=np.abs(ends - means), fmt="o", color="#0b6bb5", capsize=3)
        axis.axvline(0, color="0.7", linewidth=1, zorder=0)
        axis.set_title(f"{title}\n({better})", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(results)), list(results))
    axes[0].invert_yaxis()
    figure.supxlabel("change against the base model, with 95 % intervals", fontsize=9)
    figure.savefig(path, dpi=120)


def write(found: list[dict[str, dict[str, list[np.ndarray]]]], head: str, stem: str) -> None:
    """Writes the three files, and prints the table."""
    results, base = together(found), base_means(found)
    facts = {
        setting: {metric: {"mean": one.mean, "change": one.change._asdict()} for metric, one in row.items()}
        for setting, row in results.items()
    }
    write_json(DOCS / f"{stem}.json", {BASE: base} | facts)
    draw(results, DOCS / f"{stem}.png")
    notes = DOCS / f"{stem}-notes.md"
    text = f"{head}\n![The change of four metrics by setting]({stem}.png)\n\n{table(results, base)}\n"
    write_text(DOCS / f"{stem}.md", text + (f"\n{notes.read_text()}" if notes.exists() else ""))
    print(table(results, base))


def head_of(subjects: list[Task], seeds: int, steps: int) -> str:
    """Returns what the page says first."""
    return f"""# What each choice does

The embedded model {subjects[0].model}, {steps} steps of 4 + 4 images, {seeds} seeds; subjects:
{", ".join(task.name for task in subjects)}.
For every run, 25 prompts with 2 images each and 16 class images are sampled, and the demo's CLIP measures them. A cell
is the mean over all runs, followed by its change against the base model with the same prompts and seeds, and by a 95 %
bootstrap interval that resamples first runs and then prompts within them. Made by `python scripts/ablation.py`.
"""


def main() -> None:
    """Does one subject, or all of them in processes of their own, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PAGES, default="demo")
    parser.add_argument("--out", type=Path, help="default: runs/ablation or runs/ablation-flow")
    parser.add_argument("--photos", type=Path, help="folder with folders of photos")
    parser.add_argument("--names", nargs="*", default=["dog", "backpack", "duck_toy"], help="which of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="train and measure this subject, and write nothing")
    arguments = parser.parse_args()
    stem = PAGES[arguments.model]
    arguments.out = arguments.out or Path("runs") / stem
    subjects = tasks(arguments.model, arguments.photos, arguments.names)
    if arguments.only:
        task = next(task for task in subjects if task.name == arguments.only)
        return learn(task, arguments.out, arguments.seeds, arguments.steps)
    waiting, running = list(subjects), []
    while waiting or running:
        while waiting and len(running) < arguments.workers:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", waiting.pop(0).name]
            running.append(subprocess.Popen(command))
        if running.pop(0).wait():
            sys.exit("a subject failed; run the same command again to go on")
    found = [measured(task, arguments.out, arguments.seeds, arguments.steps) for task in subjects]
    return write(found, head_of(subjects, arguments.seeds, arguments.steps), stem)


if __name__ == "__main__":
    main()
