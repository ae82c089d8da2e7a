"""What all pages share: the roots, the runs, the queue and the changes; and what was read of logs and images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from starlette.requests import Request

from jaxbooth.ui.changes import Changes
from jaxbooth.ui.contact_sheet import SheetMaker
from jaxbooth.ui.found_folders import Finder
from jaxbooth.ui.metric_logs import MetricLogs
from jaxbooth.ui.photos import remove_unfinished
from jaxbooth.ui.planner import Planner
from jaxbooth.ui.queue import Queue
from jaxbooth.ui.roots import Roots
from jaxbooth.ui.run_list import RunList, RunSummary
from jaxbooth.ui.sample_tiles import TileCache


@dataclass(frozen=True)
class Server:
    """The server's parts. Nothing here has to outlive it."""

    roots: Roots
    runs: RunList
    queue: Queue
    changes: Changes
    sheets: SheetMaker
    finder: Finder
    planner: Planner
    metrics: MetricLogs = field(default_factory=MetricLogs)
    tiles: TileCache = field(default_factory=TileCache)

    @classmethod
    def open(cls, roots: Roots, device_sets: Sequence[str] = ()) -> Self:
        """Returns the parts of a server that works in `roots`; see `Queue` for sets of devices."""
        remove_unfinished(roots)
        return cls(
            roots,
            RunList(roots.runs),
            Queue(roots.runs, device_sets),
            Changes(roots.runs),
            SheetMaker(roots),
            Finder(roots),
            Planner(roots.server, tuple(device_sets)),
        )

    def run(self, name: str) -> RunSummary:
        """Returns a run by its name.

        Raises:
            NotFound: there is none.
        """
        return self.runs.get(self.roots.run(name).root)


def server_of(request: Request) -> Server:
    """Returns the server that a request was sent to."""
    server = request.app.state.server
    assert isinstance(server, Server)
    return server
