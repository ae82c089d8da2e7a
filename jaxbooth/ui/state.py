"""What all pages share: the roots, the runs, the queue and the changes; and what was read of logs and images."""

from dataclasses import dataclass, field

from starlette.requests import Request

from jaxbooth.ui.changes import Changes
from jaxbooth.ui.metric_logs import MetricLogs
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
    metrics: MetricLogs = field(default_factory=MetricLogs)
    tiles: TileCache = field(default_factory=TileCache)

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
