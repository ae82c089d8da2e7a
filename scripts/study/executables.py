"""Keeps compiled programs in a process that trains many runs of few kinds: making or reading one takes seconds."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import jax
from jax._src import compilation_cache

from jaxbooth.runs import training_run
from jaxbooth.training.step import Dispatch

Loaded = tuple[Any, Any]  # executable and compile time; (None, None): there is none


def keep_executables() -> None:
    """Lets every program stay in memory once it was read from the cache on disk, where small ones go, too."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    read = compilation_cache.get_executable_and_time
    loaded: dict[str, Loaded] = {}

    def read_once(cache_key: str, *arguments: Any, **options: Any) -> Loaded:
        found = loaded.get(cache_key) or read(cache_key, *arguments, **options)
        if found[0] is not None:
            loaded[cache_key] = found
        return found

    compilation_cache.get_executable_and_time = read_once


class TrainSteps:
    """The compiled train steps of runs that differ in nothing but their seed and their images."""

    def __init__(self) -> None:
        self.compiled: dict[Any, list[Dispatch]] = {}

    def shared(self, kind: tuple[str, ...]) -> AbstractContextManager[Any]:
        """Lets runs inside of the block take the step of an earlier one of their kind, with arrays of the same shapes.

        Args:
            kind: everything else that a step depends on.
        """
        compile_dispatches: Callable[..., list[Dispatch]] = training_run.compile_dispatches

        def take(dispatches: Sequence[Any], state: Any, frozen: Any, data: Any) -> list[Dispatch]:
            shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (state, frozen, data.caches))
            key = (kind, str(shapes))
            if key not in self.compiled:
                self.compiled[key] = compile_dispatches(dispatches, state, frozen, data)
            return self.compiled[key]

        return patch.object(training_run, "compile_dispatches", take)
