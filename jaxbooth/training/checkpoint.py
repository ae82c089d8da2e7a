"""Checkpoints of the train state, by Orbax: asynchronous, committed by a rename, restorable onto any mesh."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxbooth.config import Config
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.training.state import TrainState, needed_for_result, result_params


class Checkpoints:
    """The `checkpoints/` folder of a run. A save that was cut short leaves no step behind.

    Args:
        folder: created when missing, unless it is only read.
        keep: newest steps to keep; None opens the folder for reading, without touching what a running training writes.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=writes, cleanup_tmp_directories=writes, create=writes,
            read_only=not writes,
        )  # fmt: skip
        self._folder = folder
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, config: Config) -> None:
        """Starts writing; returns before the write ends. A step that is there already is left alone."""
        if step == self.latest():
            return
        content = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()), config=ocp.args.JsonSave(config.model_dump(mode="json"))
        )
        self._manager.save(step, args=content, force=True)

    def restore(self, abstract: TrainState) -> TrainState:
        """Reads the newest step into the shapes and shardings of `abstract`.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        return TrainState(**self._read(abstract._asdict()))

    def restore_result(self, abstract: TrainState) -> dict[str, Params]:
        """Reads from the newest step only what sampling and export need; see `result_params`.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        read: dict[str, Any] = {"params": {}, "ema": {}} | self._read(needed_for_result(abstract))
        return result_params(abstract._replace(**read))

    def _read(self, part: dict[str, Any]) -> dict[str, Any]:
        """Reads the named fields of the newest step's state."""
        step = self.latest()
        arguments = ocp.args.PyTreeRestore(
            item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
        )
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except (ValueError, FileNotFoundError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({reason}); "
                "move that folder away to continue from the one before."
            ) from None

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the folder."""
        self._manager.close()
