"""What a LoRA loses that is trained on a quantized base model: the runs of the study of priors once more.

    python scripts/quantization_study.py --photos ../shared/dreambooth --out runs/quantization-study

Trains the baseline's LoRA of docs/prior-study.json on quantized weights, on every subject, base model and seed,
measures it on the ordinary weights, for which it is exported, and prints differences to the runs of that study. Runs of
which the figures are in --out are not trained again.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from prior_study import PUBLISHED
from study.executables import TrainSteps, keep_executables
from study.measure import Measurer, rounded
from study.plan import BASELINE, MODELS, SEEDS, SUBJECTS, Run, Task, copy_photos, run_config, tasks
from study.work import make_missing_class_images, picture_file, results_file

from jaxbooth import train
from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.models.quantization import Quantization
from jaxbooth.pipeline import load_run
from jaxbooth.runs.folder import open_run
from jaxbooth.runs.restore import read_base, run_mesh
from jaxbooth.storage.files import remove_tree, write_json, write_png

KINDS: tuple[Quantization, ...] = ("int8", "nf4")
METRICS = ("clip_i", "clip_t", "pres", "div", "drift")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quantization-study"))
    parser.add_argument("--photos", type=Path, default=Path("../shared/dreambooth"), help="the DreamBooth dataset")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    return parser.parse_args()


def run_of(task: Task, seed: int) -> Run:
    """Returns the study's run that the others are compared with."""
    return Run(task, "lora", BASELINE, seed)


def train_and_measure(run: Run, kind: Quantization, out: Path, measurer: Measurer, steps: TrainSteps) -> None:
    """Trains one run on a quantized base model, and measures its LoRA on the ordinary one."""
    name = f"{run.name}-{kind}"
    folder = out / "runs" / name
    remove_tree(folder)
    with steps.shared((run.task.model, kind)):
        train(run_config(run, out).model_copy(update={"model_quantization": kind, "run_dir": str(folder)}))
    opened, config = open_run(str(folder))
    ordinary = config.model_copy(update={"model_quantization": "none"})
    pipeline = load_run(opened, ordinary, read_base(ordinary), run_mesh(ordinary), None)
    measurement = measurer.measure(pipeline.params)
    write_png(picture_file(out, name), measurement.images, {})
    write_json(results_file(out, name), {"name": name, "metrics": rounded(measurement.metrics)})
    remove_tree(folder)
    print(name, json.dumps(rounded(measurement.metrics)), flush=True)


def print_differences(out: Path, model: str, seeds: int) -> None:
    """Prints a row of a table for each kind: changes beside the ordinary base model, with intervals."""
    published = {record["name"]: record for record in json.loads(PUBLISHED.read_text())["records"]}

    def figures(records: dict[str, Any], suffix: str, metric: str) -> np.ndarray:
        runs = [[run_of(Task(model, subject), seed) for seed in range(seeds)] for subject in SUBJECTS]
        return np.array([[records[run.name + suffix]["metrics"][metric] for run in row] for row in runs])

    for kind in KINDS:
        names = [run_of(Task(model, subject), seed).name for subject in SUBJECTS for seed in range(seeds)]
        own = {f"{name}-{kind}": json.loads(results_file(out, f"{name}-{kind}").read_text()) for name in names}
        cells = []
        for metric in METRICS:
            estimate = bootstrap_mean(list(figures(own, f"-{kind}", metric) - figures(published, "", metric)))
            cells.append(f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]")
        print(f"| {model} | {kind} | {' | '.join(cells)} |")


def main() -> None:
    """Trains what is missing, and prints the table."""
    arguments = parse()
    keep_executables()
    out = arguments.out.absolute()
    copy_photos(arguments.photos, out)
    make_missing_class_images(out)
    chosen = [task for task in tasks() if task.model in arguments.models]
    steps, measurers = TrainSteps(), dict[Task, Measurer]()
    for seed in range(arguments.seeds):
        for task, kind in itertools.product(chosen, KINDS):
            run = run_of(task, seed)
            if results_file(out, f"{run.name}-{kind}").exists():
                continue
            if task not in measurers:
                measurers[task] = Measurer(run_config(run, out))
            train_and_measure(run, kind, out, measurers[task], steps)
    print(f"| base model | held in | {' | '.join(METRICS)} |")
    for model in arguments.models:
        print_differences(out, model, arguments.seeds)


if __name__ == "__main__":
    main()
