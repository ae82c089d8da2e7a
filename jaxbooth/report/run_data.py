"""Reads what a run folder holds for the report. What a run has not written yet is empty."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.run_config import Config
from jaxbooth.data.class_images import class_folders
from jaxbooth.data.images import image_files
from jaxbooth.errors import UserError
from jaxbooth.report.curves import Curve, read_curves
from jaxbooth.report.sample_grids import SampleGrid, read_grid
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.early_stopping import read_selection
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.storage.remote import file_size, is_local, modified_time
from jaxbooth.storage.text import read_json

EVALUATION = Path("evaluation", "evaluation.json")


class ClassImageFiles(NamedTuple):
    """The files of the class images of one prompt."""

    prompt: str
    folder: Path
    files: list[Path]


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        name: shown; no other run of the report has it.
        curves: metric -> its values at every step.
        validations: metric -> its values at every validation.
        step: the last one that is logged.
        stopped: step at which the run ended early, if it did.
        best: step of the checkpoint that is kept as the best one, if there is one.
        written: when the last step was logged, in UTC.
        evaluation: the content of `evaluation.json`, or None.
        checkpoints: step -> bytes.
        exported: bytes of the export; 0 where there is none.
        damaged: images that cannot be read.
    """

    name: str
    folder: RunFolder
    config: Config
    curves: dict[str, Curve]
    validations: dict[str, Curve]
    step: int
    stopped: int | None
    best: int | None
    written: datetime
    grids: list[SampleGrid]
    classes: list[ClassImageFiles]
    evaluation: dict[str, Any] | None
    checkpoints: dict[int, int]
    exported: int
    damaged: list[Path]

    @property
    def state(self) -> str:
        """How far the run is."""
        total = self.config.train.steps
        if self.stopped is not None:
            return f"ended early at step {self.stopped} of {total}"
        return f"complete, {total} steps" if self.step >= total else f"at step {self.step} of {total}"


def read_runs(folders: Sequence[str | Path]) -> list[RunData]:
    """Reads run folders, local ones or on an object store.

    Raises:
        UserError: one is no run folder, is named twice, or has no metrics yet.
    """
    opened = [open_run(folder) for folder in folders]
    roots = [run.root for run, _ in opened]
    for root in roots:
        if roots.count(root) > 1:
            raise UserError(f"{root} is named twice; name each run once.")
    names = short_names(roots)
    return [read_run(run, config, name) for (run, config), name in zip(opened, names, strict=True)]


def read_run(run: RunFolder, config: Config, name: str) -> RunData:
    """Reads one run.

    Raises:
        UserError: it has no metrics yet, or its evaluation is not JSON.
    """
    curves = read_curves(run.metrics)
    if not curves:
        raise UserError(f"{run.root} has no metrics yet; run `jaxbooth train` until its first steps are done.")
    selection = read_selection(run.selection)
    paths = sorted(run.samples(0).parent.glob("step_*.png"))
    grids = [read_grid(path) for path in paths]
    return RunData(
        name=name,
        folder=run,
        config=config,
        curves=curves,
        validations=read_curves(run.root / "validation.jsonl"),
        step=max(int(curve.steps[-1]) for curve in curves.values()),
        stopped=selection.stopped_at,
        best=selection.best_step,
        written=datetime.fromtimestamp(modified_time(run.metrics), UTC),
        grids=sorted((grid for grid in grids if grid), key=lambda grid: grid.step),
        classes=class_image_files(config),
        evaluation=read_evaluation(run.root / EVALUATION),
        checkpoints=checkpoint_sizes(run.checkpoints),
        exported=folder_size(run.export) if run.is_exported else 0,
        damaged=[path for path, grid in zip(paths, grids, strict=True) if grid is None],
    )


def short_names(roots: Sequence[Path]) -> list[str]:
    """Returns each folder's name, with as many of its parents as it takes to tell the folders apart."""
    parts = [str(root).split("/") for root in roots]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(folders[-length:]) for folders in parts]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]


def class_image_files(config: Config) -> list[ClassImageFiles]:
    """Lists the class images of a run that trains on them; a folder that several subjects share is listed once."""
    if not config.prior.uses_class_images:
        return []
    prompts = [subject.class_prompt or "" for subject in config.subjects]
    prompt_of = dict(zip(class_folders(config.data, config.subjects, config.run_dir), prompts, strict=True))
    return [
        ClassImageFiles(prompt, folder, image_files(folder)) for folder, prompt in prompt_of.items() if folder.is_dir()
    ]


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Reads `evaluation.json`; None if there is none.

    Raises:
        UserError: the file is something else.
    """
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError:
        raise UserError(f"{path} is not a JSON object; remove it, or make it again.") from None


def checkpoint_sizes(folder: Path) -> dict[int, int]:
    """Returns step -> bytes of the complete checkpoints."""
    return {step: folder_size(folder / str(step)) for step in checkpoint_steps(folder)}


def folder_size(folder: Path) -> int:
    """Returns the size of all files in a folder, in bytes."""
    return sum(map(file_size, files_below(folder))) if folder.exists() else 0


def files_below(folder: Path) -> list[Path]:
    """Returns all files in a folder and its subfolders, local or on an object store; symlinks are not followed."""
    entries = [path for path in folder.iterdir() if not is_local(path) or not path.is_symlink()]
    return [file for path in entries for file in (files_below(path) if path.is_dir() else [path])]
