"""Starts the server: finds a port, says where the page is, and serves until Ctrl-C."""

import errno
import getpass
import platform
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout

from jaxbooth.console.messages import print_plain, shell_quote
from jaxbooth.distributed.signals import handled
from jaxbooth.errors import UserError
from jaxbooth.ui.app import make_app
from jaxbooth.ui.changes import Changes
from jaxbooth.ui.guard import LOCAL
from jaxbooth.ui.roots import Roots
from jaxbooth.ui.tokens import TOKEN, read_token

ANY = ("0.0.0.0", "::")  # all addresses of this machine
NEXT_PORTS = 20  # that are tried for one to offer
GRACE_SECONDS = 2  # for answers that are being sent


def serve(root: Path, port: int, host: str, folders: Sequence[Path], device_sets: Sequence[str]) -> None:
    """Serves the page until the process is told to end. Jobs go on.

    Raises:
        UserError: the root cannot be written or has a server already, or the port is in use.
    """
    roots = Roots.open(root, tuple(folders))
    lock = FileLock(roots.server / "lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another `jaxbooth ui` works in {root}; open its page, or choose another --root.") from None
    with lock, listen(host, port) as listening:
        token = read_token(roots.server / TOKEN)
        hosts = [] if host in LOCAL else [host.lower(), platform.node().lower()]
        app = make_app(roots, token, hosts, host in ANY, device_sets)
        print_plain(describe_address(host, listening.getsockname()[1], token))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
        )
        PageServer(config, app.state.server.changes).run([listening])
    print_plain("The page is closed; runs that train go on.")


class PageServer(uvicorn.Server):
    """A server that first ends the streams of events, which pages would hear for ever.

    Args:
        changes: makes the streams.
    """

    def __init__(self, config: uvicorn.Config, changes: Changes):
        super().__init__(config)
        self._changes = changes

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ends at a signal, as a command that has done what it was asked."""
        with handled(self.handle_exit, signal.SIGINT, signal.SIGTERM):
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends."""
        await self._changes.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Raises:
        UserError: the port is in use, with one that is not; or the address is not this machine's.
    """
    try:
        return bind(host, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"port {port} is in use; try --port {next_port(host, port)}.") from None
        raise UserError(f"--host {host}: {error.strerror}; name an address of this machine.") from None


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address; 0 takes any port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def next_port(host: str, port: int) -> int:
    """Returns the next port that is free, or any."""
    for other in range(port + 1, min(port + NEXT_PORTS, 2**16)):
        try:
            with bind(host, other):
                return other
        except OSError:
            continue
    with bind(host, 0) as listening:
        return int(listening.getsockname()[1])


def describe_address(host: str, port: int, token: str) -> str:
    """Says where the page is, and how to reach it from another machine."""
    shown = platform.node() if host in ANY else f"[{host}]" if ":" in host else host
    lines = [f"http://{shown}:{port}/?token={token}"]
    if host in LOCAL:
        target = shell_quote(f"{getpass.getuser()}@{platform.node()}")
        lines += ["From another machine, forward the port and open the same address there:"]
        lines += [f"  ssh -N -L {port}:localhost:{port} {target}"]
    else:
        lines += ["Whoever has this address can start programs here; it is sent without encryption."]
    return "\n".join(lines)
