"""What is saved of the subjects in the slots: their states, all in one file, which takes the place of the one before.

A file belongs to one process of those that share a root. A subject that is done has its own checkpoint in its run
folder, and is left out.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxbooth.console.messages import warn
from jaxbooth.storage.files import write_bytes
from jaxbooth.training.state import TrainState

SUFFIX = ".safetensors"


class SavedSubject(NamedTuple):
    """Where a subject's state is.

    Attributes:
        step: updates done.
    """

    file: Path
    step: int


def save_subjects(path: Path, states: Mapping[str, TrainState]) -> None:
    """Writes the states of subjects, on the host, by their names.

    The bytes of every leaf are written as they are, whatever their dtype.
    """
    tensors, digests = {}, {}
    for name, state in states.items():
        leaves = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(state)]
        tensors |= {tensor_name(name, index): leaf for index, leaf in enumerate(leaves)}
        digests[name] = digest(leaves)
    steps = {name: int(state.step) for name, state in states.items()}
    write_bytes(path, save(tensors, {"steps": json.dumps(steps), "digests": json.dumps(digests)}))


def tensor_name(name: str, index: int) -> str:
    """Returns the name of a leaf of a subject's state."""
    return f"{name}/{index}"


def digest(leaves: list[np.ndarray]) -> str:
    """Returns a sum over the bytes of a state."""
    total = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        total.update(leaf.data)
    return total.hexdigest()


def find_saved(folder: Path) -> dict[str, SavedSubject]:
    """Returns the subjects that were saved, each where it is furthest; a file that cannot be read is reported."""
    found: dict[str, SavedSubject] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with safe_open(path, framework="numpy") as file:
                steps = {str(name): int(step) for name, step in json.loads(file.metadata()["steps"]).items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            warn(f"{path} cannot be read; the subjects in it begin anew.")
            continue
        for name, step in steps.items():
            if name not in found or step > found[name].step:
                found[name] = SavedSubject(path, step)
    return found


def read_all_saved(folder: Path, names: Collection[str], example: TrainState) -> dict[str, TrainState]:
    """Returns the saved states of some subjects, on the host; see `read_saved`."""
    states = {}
    for name, saved in find_saved(folder).items():
        state = read_saved(saved, name, example) if name in names else None
        if state is not None:
            states[name] = state
    return states


def read_saved(saved: SavedSubject, name: str, example: TrainState) -> TrainState | None:
    """Reads the state of a subject; None, and a warning, if it is not what was saved.

    Args:
        example: a state of the same shapes and dtypes.
    """
    shapes, structure = jax.tree.flatten(example)
    try:
        with safe_open(saved.file, framework="numpy") as file:
            leaves = [file.get_tensor(tensor_name(name, index)) for index in range(len(shapes))]
            expected = json.loads(file.metadata()["digests"])[name]
        if digest(leaves) != expected:
            raise ValueError
        shaped = [leaf.view(like.dtype).reshape(like.shape) for leaf, like in zip(leaves, shapes, strict=True)]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        warn(f"{saved.file}: the state of {name} is damaged; {name} begins anew.")
        return None
    return jax.tree.unflatten(structure, shaped)
