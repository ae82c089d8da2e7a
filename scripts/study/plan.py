"""What the study compares: settings of the prior, subjects, base models, and the configuration of each run."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth import load_config
from jaxbooth.config.run_config import Config

STEPS = {"demo": 60, "demo-flow": 40}
BATCH_SIZE = 2  # instance rows of a step, and as many of each method of the prior that has rows
RANK = 16  # of the LoRA
RATES = {"full": 4e-4, "lora": 5e-3}  # about twice the demos', for fewer steps of fewer rows
PHOTOS = 5  # of each subject: with as many for all, one compiled step serves them all
SEEDS = 3
SUBJECTS = {"fluent-cat": "cat", "dog": "dog", "backpack": "backpack"}  # name -> class noun
EMBEDDED = "fluent-cat"
MODELS = ("demo", "demo-flow")
TRAINED = ("full", "lora")
ANCHORS = (1e-4, 1e-3, 1e-2)  # weights of the weight anchor
BASELINE = "class-images 1"
BASE = "base model"  # in the place of a setting, in its record
CLASS_IMAGES = "class images"  # in the record about making them


def anchored(weight: float, *others: str) -> dict[str, Any]:
    """Returns the prior of a weight anchor, with other methods beside it."""
    return {"method": [*others, "weight-anchor"], "weight_anchor_weight": weight}


SETTINGS: dict[str, dict[str, Any]] = {  # name -> section `prior`
    "none": {"method": ["none"]},
    "class-images 0.5": {"class_images_weight": 0.5},
    BASELINE: {},
    "class-images 2": {"class_images_weight": 2.0},
    "frozen target": {"target": "frozen"},
    "output-preservation": {"method": ["output-preservation"]},
    "blank-prompt": {"method": ["blank-prompt"]},
    **{f"weight-anchor {weight:g}": anchored(weight) for weight in ANCHORS},
    "class-images + weight-anchor": anchored(ANCHORS[1], "class-images"),
}


class Task(NamedTuple):
    """A subject that a base model learns."""

    model: str
    subject: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.subject}"


class Run(NamedTuple):
    """One training run.

    Attributes:
        trained: "full" or "lora".
        setting: a name of SETTINGS.
    """

    task: Task
    trained: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        setting = self.setting.replace(" + ", "-and-").replace(" ", "-")
        return f"{self.task.name}-{self.trained}-{setting}-{self.seed}"


def base_name(task: Task) -> str:
    """Returns the name of the files about a task's base model."""
    return f"{task.name}-base"


def tasks() -> list[Task]:
    """Returns every base model with every subject."""
    return [Task(model, subject) for model in MODELS for subject in SUBJECTS]


def runs_of(worker: int, workers: int, seeds: int) -> list[Run]:
    """Returns a worker's share of all runs, a whole seed before the next one.

    Workers share the pairs of a task and a way of training, and each subject begins at another setting: thus few of
    them compile the same step at the same time.
    """
    settings = list(SETTINGS)
    first = {subject: index * len(settings) // len(SUBJECTS) for index, subject in enumerate(SUBJECTS)}
    pairs = [(task, trained) for task in tasks() for trained in TRAINED]
    return [
        Run(task, trained, settings[(first[task.subject] + position) % len(settings)], seed)
        for seed in range(seeds)
        for position in range(len(settings))
        for task, trained in pairs[worker::workers]
    ]


def copy_photos(photos: Path, out: Path) -> None:
    """Copies the first photos of each subject, so that all subjects have as many."""
    for subject in SUBJECTS:
        folder = out / "photos" / subject
        if subject == EMBEDDED or folder.exists():
            continue
        folder.mkdir(parents=True)
        for file in sorted((photos / subject).iterdir())[:PHOTOS]:
            shutil.copy(file, folder)


def run_config(run: Run, out: Path) -> Config:
    """Returns the configuration of a run."""
    task = run.task
    raw = load_config(task.model).model_dump(mode="json")
    noun = SUBJECTS[task.subject]
    steps = STEPS[task.model]
    if task.subject != EMBEDDED:
        raw["data"] |= {"instance_dir": str(out / "photos" / task.subject), "instance_prompt": f"a sks {noun}"}
        raw["data"] |= {"class_prompt": f"a {noun}"}
    raw["data"]["class_dir"] = str(out / "class" / task.name) if uses_class_images(run.setting) else None
    raw["prior"] |= SETTINGS[run.setting]
    raw["train"] |= {"steps": steps, "checkpoint_every": steps, "batch_size": BATCH_SIZE}
    raw["train"] |= {"learning_rate": RATES[run.trained]}
    raw["lora"] |= {"rank": RANK} if run.trained == "lora" else {}
    raw["validation"] |= {"every": steps, "images_per_prompt": 1, "steps": 2}  # the study measures for itself
    paths = {"seed": run.seed, "run_dir": str(out / "runs" / run.name), "export": False}
    return Config.model_validate(raw | paths)


def uses_class_images(setting: str) -> bool:
    """Whether a setting trains on images of the class."""
    return "class-images" in SETTINGS[setting].get("method", ["class-images"])


def plan() -> dict[str, Any]:
    """Returns what makes results comparable: those of another plan are not mixed with this one's."""
    return {
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "lora_rank": RANK,
        "learning_rates": RATES,
        "photos": PHOTOS,
        "subjects": list(SUBJECTS),
        "settings": SETTINGS,
    }
