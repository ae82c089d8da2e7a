"""A run's folder: what is where, and which names are those of a run."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from jaxbooth.assets import EMBEDDED_MODELS
from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.runs.metric_writer import VALIDATION
from jaxbooth.storage.files import remove_tree, write_text
from jaxbooth.storage.lock import check_held
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.remote import as_path, check_reachable, is_local, staging_folder, upload
from jaxbooth.storage.similar import contains_file, folders_containing, similar_folders
from jaxbooth.weights.resolve import CHECKPOINTS

CONFIG = "config.yaml"
RUNS = Path("runs")  # where shipped configurations have their run folders


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.root / "metrics.jsonl"

    @property
    def validation_metrics(self) -> Path:
        """One JSON line a validation."""
        return self.root / VALIDATION

    @property
    def base_latents(self) -> Path:
        """Latents of the base model's class images, which drift is measured from."""
        return self.root / "base_latents.npy"

    @property
    def selection(self) -> Path:
        """Which checkpoints stay beside the newest."""
        return self.root / "selection.json"

    @property
    def evaluation(self) -> Path:
        """What `jaxbooth evaluate` makes."""
        return self.root / "evaluation"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Orbax's folder."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The exported model of a complete run."""
        return self.root / "export"

    @property
    def export_mark(self) -> Path:
        """Beside the export on an object store, where that does not appear at once: it is whole."""
        return self.root / "exported"

    @property
    def is_exported(self) -> bool:
        """Whether there is a whole export."""
        return (self.export if is_local(self.root) else self.export_mark).exists()

    @contextmanager
    def new_export(self) -> Generator[Path]:
        """Yields the path of a local folder to write, which takes the place of the former export when the block ends.

        Its name is the run's: files are named after their folder.
        """
        if is_local(self.root):
            check_held(self.root)
            aside = self.root / ".export"
            remove_tree(aside)
            yield aside / self.root.name
            remove_tree(self.export)
            (aside / self.root.name).replace(self.export)
            aside.rmdir()
            return
        with staging_folder(self.root) as fresh:
            yield fresh
            self.export_mark.unlink(missing_ok=True)
            if self.export.exists():
                epath.Path(self.export).rmtree()
            upload(fresh, self.export)
            write_text(self.export_mark, "")

    @property
    def images(self) -> Path:
        """Names of the images that the run was started with."""
        return self.root / "images.json"

    @property
    def base_model(self) -> Path:
        """Which base model the run was started on."""
        return self.root / "base_model.json"

    @property
    def contact_sheet(self) -> Path:
        """The instance images as the model sees them."""
        return self.root / "contact_sheet.png"

    def samples(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.root / "samples" / f"step_{step:06d}.png"


def open_run(path: str | Path) -> tuple[RunFolder, Config]:
    """Opens an existing run folder.

    Raises:
        UserError: it is none.
    """
    run = RunFolder(as_path(path))
    check_reachable(run.root)
    if not run.root.exists():
        raise no_such_run(str(path))
    if not run.config.exists():
        raise UserError(f"{path} is not a run folder (it has no {CONFIG}).")
    return run, load_config(run.config)


def no_such_run(name: str, what: str = "run") -> UserError:
    """Returns the error for a path at which nothing is, with the names of runs that may have been meant."""
    path = Path(name)
    near = similar_folders(path, CONFIG, RUNS) if "://" not in name else []
    if near:
        return UserError(f"no such {what}: {name} (did you mean {' or '.join(map(str, near))}?).")
    if "://" not in name and not local_path(path.parent).is_dir():
        return UserError(f"no such {what}: {name} (there is no folder {path.parent} here).")
    return UserError(f"no such {what}: {name}.")


def refuse_missing(name: str) -> None:
    """Refuses the name of a run or a model at which nothing is and that is no Hub id, before the Hub is asked.

    Names below `runs/`, and names beside a run, are paths.

    Raises:
        UserError: there is no such run.
    """
    path = as_path(name)
    runs = [] if (path / CONFIG).exists() else folders_containing(path, CONFIG)
    if runs and not contains_file(path, "model_index.json"):
        raise UserError(f"{name} is a folder of runs; name one of them, such as {Path(name) / runs[0].name}.")
    if name in EMBEDDED_MODELS or path.exists() or Path(name).suffix.lower() in CHECKPOINTS:
        return
    is_hub_id = re.fullmatch(r"[^/.~][^/]*/[^/]+", name) is not None
    if not is_hub_id or Path(name).parent == RUNS or folders_containing(Path(name).parent, CONFIG):
        raise no_such_run(name, "run or model")
