"""Checkpoints of the train state, by Orbax: asynchronous, committed by a rename, restorable onto any mesh."""

import logging
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext, PreservationPolicy

from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import warn
from jaxbooth.distributed.run_scope import all_agree, is_writer
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.params import Params
from jaxbooth.runs.checkpoint_handlers import (
    as_copies,
    json_handler,
    saving_processes,
    saving_threads,
    state_handler,
    writes_alone,
)
from jaxbooth.storage.disk import format_bytes, free_bytes, is_full
from jaxbooth.storage.lock import check_held
from jaxbooth.storage.paths import as_orbax_path
from jaxbooth.storage.remote import as_path, is_local
from jaxbooth.training.state import TrainState, field_sums, result_fields, result_params, tree_bytes

# Orbax explains its every option in absl's log, and raises its errors besides.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)


class DamagedCheckpoint(Exception):
    """A checkpoint is not what was saved."""


class Checkpoints:
    """The `checkpoints/` folder of a run. A save that was cut short leaves no step behind.

    Args:
        folder: created when missing, unless it is only read.
        keep: newest steps to keep; None opens the folder for reading, without touching what a running training writes.

    Attributes:
        pinned: older steps to keep as well.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        writes, self.pinned, alone = keep is not None, set[int](), writes_alone()
        if writes and alone:  # Orbax creates none then
            folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=KeepNewest(keep or 1, self),
            enable_async_checkpointing=writes,
            cleanup_tmp_directories=writes,
            create=writes and not alone,
            read_only=not writes,
            multiprocessing_options=saving_processes(),
            async_options=saving_threads(),
        )
        self._folder, self._writes = as_path(folder), writes
        self._is_proven = False  # whether a checkpoint of this process was read back from where it lies
        handlers = {"state": state_handler(), "config": json_handler(), "sums": json_handler()}
        self._manager = ocp.CheckpointManager(as_orbax_path(self._folder), options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def check(self, step: int) -> None:
        """Raises UserError if there is no checkpoint of a step, which a user has asked for."""
        steps = sorted(self._manager.all_steps())
        if step not in steps:
            available = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._folder} has no checkpoint of step {step}; there are {available} (--step).")

    def save(self, state: TrainState, step: int, config: Config) -> None:
        """Starts writing; returns before the write ends. A step that is there already is left alone.

        The first one is waited for, and something of it is read back, so that no run relies on what cannot be read.

        Raises:
            RunFailure: the disk has no room for it, or had none for the one before; or the first cannot be read back.
        """
        if step == self.latest():
            return
        content = state._asdict()
        if is_local(self._folder):
            check_held(self._folder)
            check_free(self._folder, state, step)
        sums = {name: int(value) for name, value in jax.device_get(field_sums(content)).items()}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(as_copies(content)),
            config=ocp.args.JsonSave(config.model_dump(mode="json")),
            sums=ocp.args.JsonSave(sums),
        )
        with explain_full_disk(self._folder):
            self._manager.save(step, args=items, force=True)
        if not self._is_proven:
            self.wait()
            prove_readable(self._folder / str(step), state)
            self._is_proven = True

    def restore(self, abstract: TrainState) -> tuple[TrainState, int]:
        """Reads the newest sound step into the shapes and shardings of `abstract`; returns its number too.

        Damaged newer ones are reported, and moved aside (`damaged-<step>`) so that those steps can be saved again.

        Raises:
            UserError: no checkpoint is sound.
        """
        fields, step = self._read(abstract._asdict())
        return TrainState(**fields), step

    def restore_result(self, abstract: TrainState, step: int | None = None) -> tuple[dict[str, Params], int]:
        """Reads only what sampling and export need; see `restore` and `result_params`.

        Args:
            step: default: the newest sound one.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        restored, step = self._read(result_fields(abstract), step)
        fields: dict[str, Any] = {"params": {}, "ema": {}} | restored
        return result_params(abstract._replace(**fields)), step

    def _read(self, fields: dict[str, Any], wanted: int | None = None) -> tuple[dict[str, Any], int]:
        """Reads the named fields of the newest state that has them as they were saved, and its step."""
        damaged: dict[int, str] = {}
        if wanted is not None:
            self.check(wanted)
        for step in sorted(self._manager.all_steps(), reverse=True) if wanted is None else [wanted]:
            try:
                restored = read_step(self._folder / str(step), fields)
            except DamagedCheckpoint as damage:
                damaged[step] = str(damage)
                continue
            if damaged:
                self._report(damaged, step)
            return restored, step
        named = ", ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(
            f"{self._folder} holds no checkpoint that can be read ({named}); "
            "put a sound copy back, or move that folder away to begin anew."
        )

    def _report(self, damaged: dict[int, str], step: int) -> None:
        """Warns about damaged steps, newer than the sound one, and moves them aside where this folder is written."""
        for number, reason in damaged.items():
            where = ""
            if self._writes:
                aside = free_name(self._folder / f"damaged-{number}")
                where = f", now {aside.name},"
                if is_writer():
                    (self._folder / str(number)).rename(aside)
            warn(f"{self._folder / str(number)}{where} is damaged ({reason}); the checkpoint of step {step} is used.")
        if self._writes:
            all_agree(True)  # they are aside before any process looks again
            self._manager.reload()

    def sums(self, step: int) -> dict[str, int]:
        """Returns the sums of a step's fields as they were saved, which tell its weights from others."""
        return dict(json_handler().restore(as_orbax_path(self._folder / str(step) / "sums")))

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
            RunFailure: the disk had no room for one.
        """
        with explain_full_disk(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the folder; see `wait`."""
        with explain_full_disk(self._folder):
            self._manager.close()


@dataclass
class KeepNewest(PreservationPolicy):
    """Orbax's question which checkpoints stay: the newest, and the pinned ones."""

    count: int
    checkpoints: Checkpoints

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Answers for each checkpoint, oldest first."""
        older = len(checkpoints) - self.count
        return [index >= older or one.step in self.checkpoints.pinned for index, one in enumerate(checkpoints)]


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of a folder's checkpoints without opening them, in order; Orbax names them by plain numbers."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def check_free(folder: Path, state: TrainState, step: int) -> None:
    """Raises RunFailure if a checkpoint is larger than what is free; Orbax does not fail in one sentence."""
    needed, free = tree_bytes(state), free_bytes(folder)
    if needed > free:
        raise RunFailure(
            f"the disk is full: {folder} has {format_bytes(free)} free, and the checkpoint of step {step} takes "
            f"{format_bytes(needed)}; free some space and run the same command again."
        )


@contextmanager
def explain_full_disk(folder: Path) -> Generator[None]:
    """Turns what Orbax and TensorStore make of a full disk into RunFailure."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise RunFailure(
            f"the disk is full ({folder}); earlier checkpoints are intact: free some space and run the same command "
            "again."
        ) from None


def read_step(folder: Path, part: dict[str, Any]) -> dict[str, Any]:
    """Reads the named fields of one step's state, into their shapes and shardings.

    All processes come to the same end. Orbax's manager would wait at a barrier for one that cannot read its shards.

    Raises:
        Damage: something is missing, cannot be read, or is not what was saved (TensorStore does not check that).
    """
    arguments = ocp.args.PyTreeRestore(
        item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
    )
    read, sums, reason = {}, {}, ""
    try:
        read = state_handler().restore(as_orbax_path(folder / "state"), args=arguments)
        sums = dict(json_handler().restore(as_orbax_path(folder / "sums")))
    except Exception as error:  # readers raise whatever comes up, down to plain Exception
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
            raise
        reason = origin_of(error)
    if not all_agree(not reason):
        raise DamagedCheckpoint(reason or "another process cannot read it")
    for name, value in jax.device_get(field_sums(read)).items():
        if sums.get(name) != int(value):
            raise DamagedCheckpoint(f"{name} differs from what was saved")
    return read


def prove_readable(folder: Path, state: TrainState) -> None:
    """Reads the number of steps, a single integer, back from a checkpoint of `state`, which all processes have written.

    Raises:
        RunFailure: it is not there.
    """
    step = jax.ShapeDtypeStruct(state.step.shape, state.step.dtype, sharding=state.step.sharding)
    try:
        read_step(folder, {"step": step})
    except DamagedCheckpoint as damage:
        raise RunFailure(
            f"{folder} was written and cannot be read back ({damage}); choose a --run-dir on another file system."
        ) from None


def origin_of(error: BaseException) -> str:
    """Returns the first line of what an error came from."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def free_name(path: Path) -> Path:
    """Returns the path, with a number behind it where something is there already."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())
