"""Which processes work on one run: all of them together, or each of them on runs of its own."""

from collections.abc import Generator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

_scope = {"independent": False}  # of the whole process: its threads write files, too


@contextmanager
def independent_processes() -> Generator[None]:
    """Within it each process works on runs of its own, on its own devices, and waits for no other."""
    _scope["independent"] = True
    try:
        yield
    finally:
        _scope["independent"] = False


def is_shared() -> bool:
    """Whether several processes work on this one's run."""
    return jax.process_count() > 1 and not _scope["independent"]


def is_writer() -> bool:
    """Whether this process writes the files of its run: process 0 does for all that share it."""
    return jax.process_index() == 0 or _scope["independent"]


def all_agree(value: bool) -> bool:
    """Whether a value is true on every process of this run. Every one of them must call it."""
    return bool(process_allgather(np.array(value)).all()) if is_shared() else value
