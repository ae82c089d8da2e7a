"""What is saved of the subjects in the slots: their states, all in one file, which takes the place of the one before.

A file belongs to one process of those that share a root. A subject that is done has its own checkpoint in its run
folder, and is left out.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxbooth.config.run_config import FREE_SECTIONS, FREE_TO_CHANGE, Config
from jaxbooth.config.section import flatten
from jaxbooth.console.messages import warn
from jaxbooth.storage.files import write_bytes
from jaxbooth.training.state import TrainState

SUFFIX = ".safetensors"
SUBJECTS = "subjects"  # key of the metadata


class SavedSubject(NamedTuple):
    """Where a subject's state is.

    Attributes:
        identity: see `run_identity`.
        step: updates done.
        digest: of the state's bytes.
    """

    file: Path
    identity: str
    step: int
    digest: str


class SubjectState(NamedTuple):
    """A subject's state, on the host, and which run it belongs to."""

    identity: str
    state: TrainState


class SavedStates:
    """What is saved of subjects that are not done: of those in slots, of those that wait for one, of those that failed.

    Args:
        path: file of this process.
        states: those that earlier processes left.
    """

    def __init__(self, path: Path, states: Mapping[str, SubjectState]):
        self._path, self._states = path, dict(states)

    def find(self, name: str) -> TrainState | None:
        """Returns the state of a subject, if it was saved."""
        return self._states[name].state if name in self._states else None

    def forget(self, name: str) -> None:
        """Leaves a subject out of the file, from the next write on."""
        self._states.pop(name, None)

    def write(self, running: Mapping[str, SubjectState]) -> None:
        """Writes the states of those in slots, in the place of those before, beside the others; no file without any."""
        self._states |= running
        if self._states:
            save_subjects(self._path, self._states)
        else:
            self._path.unlink(missing_ok=True)


def run_identity(config: Config) -> str:
    """Returns a digest of everything that may not change while a run goes on; see `run_config.first_conflict`."""
    fixed = {
        key: value
        for key, value in flatten(config).items()
        if key not in FREE_TO_CHANGE and key.split(".")[0] not in FREE_SECTIONS
    }
    return digest(json.dumps(fixed, default=str, sort_keys=True).encode())


def digest(content: bytes) -> str:
    """Returns a sum over bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def save_subjects(path: Path, states: Mapping[str, SubjectState]) -> None:
    """Writes the states of subjects by their names: of each the bytes of all leaves, whatever their dtypes."""
    contents, subjects = {}, {}
    for name, (identity, state) in states.items():
        content = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
        contents[name] = np.frombuffer(content, np.uint8)
        subjects[name] = {"identity": identity, "step": int(state.step), "digest": digest(content)}
    write_bytes(path, save(contents, {SUBJECTS: json.dumps(subjects)}))


def find_saved(folder: Path) -> dict[str, SavedSubject]:
    """Returns the subjects that were saved, each where it is furthest; a file that cannot be read is reported."""
    found: dict[str, SavedSubject] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with safe_open(path, framework="numpy") as file:
                subjects = json.loads(file.metadata()[SUBJECTS])
            entries = {name: SavedSubject(path, **values) for name, values in subjects.items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            warn(f"{path} cannot be read; the subjects in it begin anew.")
            continue
        for name, saved in entries.items():
            if name not in found or saved.step > found[name].step:
                found[name] = saved
    return found


def read_all_saved(folder: Path, identities: Mapping[str, str], example: TrainState) -> dict[str, SubjectState]:
    """Returns the saved states of some subjects; one that was saved with other settings begins anew.

    Args:
        identities: of the subjects' runs.
        example: a state of the same shapes and dtypes.
    """
    states = {}
    for name, saved in find_saved(folder).items():
        if identities.get(name) != saved.identity:
            continue
        state = read_saved(saved, name, example)
        if state is not None:
            states[name] = SubjectState(saved.identity, state)
    return states


def read_saved(saved: SavedSubject, name: str, example: TrainState) -> TrainState | None:
    """Reads the state of a subject; None, and a warning, if it is not what was saved."""
    shapes, structure = jax.tree.flatten(example)
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in shapes]
    try:
        with safe_open(saved.file, framework="numpy") as file:
            content = file.get_tensor(name)
        if digest(content.tobytes()) != saved.digest or len(content) != sum(sizes):
            raise ValueError
    except (SafetensorError, OSError, ValueError):
        warn(f"{saved.file}: the state of {name} is damaged; {name} begins anew.")
        return None
    parts = np.split(content, np.cumsum(sizes)[:-1])
    leaves = [part.copy().view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, shapes, strict=True)]
    return jax.tree.unflatten(structure, leaves)
