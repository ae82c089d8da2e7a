"""Restoring a run: its base model, its mesh, and what it has trained."""

from contextlib import closing

from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable, trained_shapes, unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.folder import RunFolder
from jaxbooth.sharding import AnyMesh, make_mesh
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import TrainState, abstract_state
from jaxbooth.weights.fingerprint import model_fingerprint
from jaxbooth.weights.resolve import resolve_model


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


def confirm_base(run: RunFolder, base: BaseModel, record: bool = False) -> None:
    """Makes sure that the base model is the one that a run was started on; what was trained means nothing on another.

    Args:
        record: write it down where that was not done yet.

    Raises:
        UserError: its weights or its schedule are others.
    """
    fingerprint = model_fingerprint(base.folder, base.components)
    if not run.base_model.exists():
        if record and is_writer():
            write_json(run.base_model, {"fingerprint": fingerprint})
    elif read_json(run.base_model, "put it back").get("fingerprint") != fingerprint:
        raise UserError(
            f"{base.folder} is not the base model that {run.root} was started on (its weights or its schedule are not "
            f"those in {run.base_model.name}); put that one back, or name its commit with --revision."
        )


def abstract_run_state(config: Config, base: BaseModel, mesh: AnyMesh) -> TrainState:
    """Returns the shapes and shardings of a run's train state: what its checkpoints are read into."""
    shapes = trained_shapes(base, config)
    optimizer = make_optimizer(config.train, learning_rates(config), unused_parameters(base, shapes))
    return abstract_state(shapes, optimizer, config.train.ema_decay is not None, mesh)


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
