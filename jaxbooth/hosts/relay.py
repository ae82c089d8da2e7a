"""JAX's connection to process 0, passed on here, so that this process never sees it end.

JAX's client aborts with a stack of C++ the moment that its service is gone. The link says which process is gone, and
ends this one.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

RETRY = 0.2  # seconds between attempts to reach the service
CHUNK = 1 << 16  # bytes
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def relay(address: tuple[str, int]) -> str:
    """Listens on a port of the loopback and passes every connection on to `address`, from threads of its own.

    Returns:
        Host and port to connect to.
    """
    server = socket.create_server(("127.0.0.1", 0))
    if any(name in os.environ for name in PROXIES):  # gRPC would ask one for the loopback, too
        os.environ["no_proxy"] = ",".join(filter(None, ("127.0.0.1", os.environ.get("no_proxy"))))
    threading.Thread(target=accept, args=(server, address), daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def accept(server: socket.socket, address: tuple[str, int]) -> None:
    """Takes connections until the process ends, and keeps them: one that nothing refers to would close."""
    kept = []
    while True:
        near, _ = server.accept()
        kept.append(near)
        far = connect(address)
        threading.Thread(target=pump, args=(near, far, far.close), daemon=True).start()
        threading.Thread(target=pump, args=(far, near, lambda: None), daemon=True).start()


def connect(address: tuple[str, int]) -> socket.socket:
    """Connects to the service, which may start later."""
    while True:
        with suppress(OSError):
            return socket.create_connection(address)
        time.sleep(RETRY)


def pump(source: socket.socket, target: socket.socket, ended: Callable[[], None]) -> None:
    """Passes bytes on until the source ends."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    ended()
