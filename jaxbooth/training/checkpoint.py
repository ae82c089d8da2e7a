"""Checkpoints of the train state, by Orbax: asynchronous, committed by a rename, restorable onto any mesh."""

from pathlib import Path

import orbax.checkpoint as ocp

from jaxbooth.config import Config
from jaxbooth.errors import UserError
from jaxbooth.training.state import TrainState


class Checkpoints:
    """The `checkpoints/` folder of a run. A save that was cut short leaves no step behind.

    Args:
        folder: created when missing.
        keep: newest steps to keep.
    """

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, config: Config) -> None:
        """Starts writing; returns before the write ends. A step that is there already is left alone."""
        if step == self.latest():
            return
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config.model_dump(mode="json"))
        )
        self._manager.save(step, args=content, force=True)

    def restore(self, abstract: TrainState) -> TrainState:
        """Reads the newest step into the shapes and shardings of `abstract`.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        step = self.latest()
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        except (ValueError, FileNotFoundError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({reason}); "
                "move that folder away to continue from the one before."
            ) from None
        return restored["state"]

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the folder."""
        self._manager.close()
