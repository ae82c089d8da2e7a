"""One worker's share of the study: trains and measures runs, and writes a JSON file and a picture of each."""

import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.class_images import make_class_images
from study.executables import TrainSteps
from study.measure import Measurement, Measurer, rounded
from study.plan import BASE, BASELINE, CLASS_IMAGES, Run, Task, base_name, plan, run_config, tasks

from jaxbooth import train
from jaxbooth.storage.files import remove_tree, write_json, write_png

Measurers = dict[Task, Measurer]


def results_file(out: Path, name: str) -> Path:
    """Returns where the figures of a run or of a base model are."""
    return out / "results" / f"{name}.json"


def picture_file(out: Path, name: str) -> Path:
    """Returns where its images are."""
    return out / "pictures" / f"{name}.png"


def work(out: Path, runs: Sequence[Run], done: set[str]) -> None:
    """Does every run that is not done; one that fails is reported and left out.

    Args:
        done: names of runs whose figures are known.
    """
    missing = [run for run in runs if run.name not in done]
    measurers: Measurers = {}
    steps = TrainSteps()
    for number, run in enumerate(missing, start=1):
        began = time.monotonic()
        try:
            measurement = train_and_measure(run, out, measurers, steps)
        except Exception:
            traceback.print_exc()
            continue
        seconds = time.monotonic() - began
        metrics = json.dumps(rounded(measurement.metrics))
        print(f"{number} of {len(missing)}: {run.name}, {seconds:.0f} s, {metrics}", flush=True)


def train_and_measure(run: Run, out: Path, measurers: Measurers, steps: TrainSteps) -> Measurement:
    """Trains and measures one run, and writes both down. Of its folder nothing stays."""
    config = run_config(run, out)
    measurer = measurers.get(run.task) or measure_base(run.task, out)
    measurers[run.task] = measurer
    remove_tree(Path(config.run_dir))
    began = time.process_time()
    with steps.shared((run.task.model, run.trained, run.setting)):
        train(config)
    cpu_seconds = time.process_time() - began
    measurement = measurer.measure_run(config.run_dir)
    facts = {
        "model": run.task.model,
        "subject": run.task.subject,
        "trained": run.trained,
        "setting": run.setting,
        "seed": run.seed,
        "cpu_seconds": round(cpu_seconds, 1),
        "class_images": config.data.num_class_images if config.data.class_dir else 0,
    }
    sections = {"config": config.model_dump(mode="json", include={"data", "prior", "train", "lora", "loss"})}
    save(out, run.name, measurement, facts | sections)
    remove_tree(Path(config.run_dir))
    return measurement


def measure_base(task: Task, out: Path) -> Measurer:
    """Measures a task's base model."""
    measurer = Measurer(run_config(Run(task, "full", BASELINE, 0), out))
    save(out, base_name(task), measurer.base, {"model": task.model, "subject": task.subject, "setting": BASE})
    return measurer


def make_missing_class_images(out: Path) -> None:
    """Makes the class images of all tasks before workers start that share them, and writes down what they cost."""
    for task in tasks():
        path = results_file(out, f"{task.name}-class")
        if path.exists():
            continue
        config = run_config(Run(task, "full", BASELINE, 0), out)
        seconds = make_class_images(config)
        facts = {"name": path.stem, "model": task.model, "subject": task.subject, "setting": CLASS_IMAGES}
        costs = {"count": config.data.num_class_images, "cpu_seconds": round(seconds, 1)}
        write_json(path, facts | costs | {"plan": plan()})


def save(out: Path, name: str, measurement: Measurement, facts: dict[str, Any]) -> None:
    """Writes what was measured; the figures last, for they say that all of it is there."""
    write_png(picture_file(out, name), measurement.images, {})
    figures = {"plan": plan(), "metrics": rounded(measurement.metrics)}
    write_json(results_file(out, name), {"name": name} | facts | figures)
