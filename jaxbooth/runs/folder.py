"""A run's folder: what is where, whose it is, and what its checkpoints are read into."""

import re
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable, trained_shapes, unused_parameters
from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import is_main
from jaxbooth.data.class_images import fingerprint
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.metric_writer import VALIDATION
from jaxbooth.sharding import AnyMesh, make_mesh
from jaxbooth.storage.files import remove_tree, write_json, write_text
from jaxbooth.storage.lock import check_held
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.remote import as_path, check_reachable, is_local, staging_folder, upload
from jaxbooth.storage.similar import contains_file, folders_containing, similar_folders
from jaxbooth.storage.text import read_json
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import TrainState, abstract_state
from jaxbooth.weights.resolve import CHECKPOINTS, resolve_model

CONFIG = "config.yaml"
RUNS = Path("runs")  # where shipped configurations have their run folders
DEMO = "demo"


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


def confirm_base(run: RunFolder, base: BaseModel, record: bool = False) -> None:
    """Makes sure that the base model is the one that a run was started on; what was trained means nothing on another.

    Args:
        record: write it down where that was not done yet.

    Raises:
        UserError: its weights or its schedule are others.
    """
    found = fingerprint(base.folder, base.components)
    if not run.base_model.exists():
        if record and is_main():
            write_json(run.base_model, {"fingerprint": found})
    elif read_json(run.base_model, "put it back").get("fingerprint") != found:
        raise UserError(
            f"{base.folder} is not the base model that {run.root} was started on (its weights or its schedule are not "
            f"those in {run.base_model.name}); put that one back, or name its commit with --revision."
        )


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
    if name == DEMO or path.exists() or Path(name).suffix.lower() in CHECKPOINTS:
        return
    is_hub_id = re.fullmatch(r"[^/.~][^/]*/[^/]+", name) is not None
    if not is_hub_id or Path(name).parent == RUNS or folders_containing(Path(name).parent, CONFIG):
        raise no_such_run(name, "run or model")


def abstract_run_state(config: Config, base: BaseModel, mesh: AnyMesh) -> TrainState:
    """Returns the shapes and shardings of a run's train state: what its checkpoints are read into."""
    shapes = trained_shapes(base, config)
    tx = make_optimizer(config, unused_parameters(base, shapes))
    return abstract_state(shapes, tx, config.train.ema_decay is not None, mesh)


def open_checkpoints(run: RunFolder) -> Checkpoints:
    """Opens a run's checkpoints for reading.

    Raises:
        UserError: there is none yet.
    """
    missing = UserError(f"{run.root} has no checkpoint yet; run `jaxbooth train` until the first one.")
    if not run.checkpoints.is_dir():
        raise missing
    checkpoints = Checkpoints(run.checkpoints)
    if checkpoints.latest() is None:
        checkpoints.close()
        raise missing
    return checkpoints


def restore_result(
    run: RunFolder, config: Config, base: BaseModel, mesh: Mesh, step: int | None = None
) -> tuple[dict[str, Params], int]:
    """Returns component -> trained parameters of a step (default: the run's newest sound checkpoint), and the step.

    Raises:
        UserError: there is no checkpoint yet, none of that step, or none is sound.
    """
    with closing(open_checkpoints(run)) as checkpoints:
        return checkpoints.restore_result(abstract_run_state(config, base, mesh), step)


def run_mesh(config: Config) -> Mesh:
    """Returns the mesh that a run was trained on, or a plain one where the number of devices is another."""
    try:
        return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    except UserError:
        return make_mesh()


def read_base(config: Config, dtype: str | None = None) -> BaseModel:
    """Reads a run's base model, with the run's adapters and placeholder tokens.

    Args:
        dtype: compute dtype; default: the run's.
    """
    text = config.text
    base = BaseModel.read(
        resolve_model(config.source), dtype or config.train.dtype, text.clip_skip, text.max_token_chunks
    )
    return add_trainable(base, config)
