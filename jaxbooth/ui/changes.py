"""Tells open pages what has changed, as server-sent events.

One task looks at the files for all pages. A page that is slow gets the newest state and not each one in between, so no
page makes the server remember anything.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path

from jaxbooth.storage.lock import LOCK, is_held
from jaxbooth.ui.file_cache import version_of
from jaxbooth.ui.job import JOBS, JobFiles, job_names
from jaxbooth.ui.run_list import CONFIG, run_folders

SECONDS = 1.0  # between two looks at the files
KEEP_ALIVE = 15.0  # seconds after which a comment is sent, so that nothing in between closes a silent connection
# Part of a page -> files in the run folder that it shows.
PARTS: Mapping[str, tuple[str, ...]] = {
    "state": (CONFIG, JOBS, "export", "evaluation", "selection.json", "checkpoints"),
    "metrics": ("metrics.jsonl", "validation.jsonl"),
    "samples": ("samples", "sample_requests"),
    "log": (),
}

Versions = dict[str, tuple[int | bool, ...]]  # part -> what differs when it has changed


class Changes:
    """Watches the runs of a root while a page listens.

    Args:
        root: holds the run folders.
    """

    def __init__(self, root: Path):
        self._root = root
        self._runs: dict[str, Versions] = {}
        self._changed = asyncio.Condition()
        self._listeners = 0
        self._is_closed = False

    async def close(self) -> None:
        """Ends all streams: the server ends."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def watch(self) -> None:
        """Looks at the files until it is cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            if not self._listeners:
                continue
            runs = await asyncio.to_thread(read_versions, self._root)
            if runs != self._runs:
                async with self._changed:
                    self._runs = runs
                    self._changed.notify_all()

    async def events(self, run: str | None) -> AsyncGenerator[str]:
        """Yields a server-sent event for each part of a run that changes, or, without a run, "runs" for any change.

        The first events say that everything may have changed while nobody listened.
        """
        self._listeners += 1
        try:
            yield "retry: 2000\n\n"
            seen = self._seen(run)
            for part in ("runs",) if run is None else PARTS:
                yield event(part)
            while not self._is_closed:
                now = await self._next(run, seen)
                if now == seen:
                    yield ": still here\n\n"
                for part in parts_that_differ(run, seen, now):
                    yield event(part)
                seen = now
        finally:
            self._listeners -= 1

    def _seen(self, run: str | None) -> dict[str, Versions]:
        """Returns the versions that one page cares for."""
        return self._runs if run is None else {run: self._runs.get(run, {})}

    async def _next(self, run: str | None, seen: dict[str, Versions]) -> dict[str, Versions]:
        """Returns other versions than `seen`, or after a while the same ones."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEP_ALIVE), self._changed:
                await self._changed.wait_for(lambda: self._is_closed or self._seen(run) != seen)
        return self._seen(run)


def event(part: str) -> str:
    """Returns a server-sent event."""
    return f"event: change\ndata: {part}\n\n"


def parts_that_differ(run: str | None, before: dict[str, Versions], now: dict[str, Versions]) -> list[str]:
    """Returns the parts of a page that have changed."""
    if before == now:
        return []
    if run is None:
        return ["runs"]
    return [part for part in PARTS if before[run].get(part) != now[run].get(part)]


def read_versions(root: Path) -> dict[str, Versions]:
    """Returns run -> the versions of its parts."""
    return {folder.name: run_versions(folder) for folder in run_folders(root)}


def run_versions(folder: Path) -> Versions:
    """Returns the versions of a run's parts: sizes and times of files, and which locks are held."""
    jobs = [JobFiles.of(folder, name) for name in job_names(folder)]
    versions = {part: tuple(map(version_of, (folder / name for name in names))) for part, names in PARTS.items()}
    held = [is_held(folder / LOCK), *(is_held(files.lock) for files in jobs)]
    versions["state"] += (*held, *(version_of(files.job) for files in jobs))
    versions["log"] = tuple(version_of(files.log) for files in jobs)
    return versions
