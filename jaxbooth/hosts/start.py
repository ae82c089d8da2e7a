"""Starting and ending the processes of a run: `jax.distributed`, and the link between them."""

import atexit
import importlib.metadata
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxbooth.config.schema import DistributedConfig
from jaxbooth.console.messages import print_plain
from jaxbooth.errors import UserError
from jaxbooth.hosts.coordinator import Coordinator
from jaxbooth.hosts.link import GRACE, Alone, Link, exit_now
from jaxbooth.hosts.place import Place, find_place
from jaxbooth.hosts.relay import relay
from jaxbooth.hosts.signals import watch_signals

NOTICE = 30.0  # seconds between words on who is missing
EXIT_CODES: dict[type[BaseException], int] = {UserError: 2, KeyboardInterrupt: 130}  # of `jaxbooth.cli`; else 1
PACKAGES = ("jaxbooth", "jax", "jaxlib")


@contextmanager
def joined(chosen: DistributedConfig, facts: Mapping[str, Any], again: str) -> Generator[Alone]:
    """Runs the block as one of the run's processes; yields the link to the others.

    If the block fails on one of them, all end, and say on which. A signal to stop outside of the loop ends all of them
    with exit code 0.

    Args:
        facts: of the run; they must be equal on all processes.
        again: the sentence that says how to go on after a stop.

    Raises:
        UserError: the processes do not come together; see `Link`.
    """
    place = find_place(chosen)
    link = meet(place, facts, chosen.timeout, again) if place else Alone(lambda: leave(again))
    try:
        with watch_signals(link):
            if place:
                begin(place, link, chosen.timeout)
            yield link
    except BaseException as error:
        link.fail(error)
        if place:
            time.sleep(2 * GRACE)  # the others hear it before this process, and JAX's service with it, is gone
            atexit.register(exit_now, EXIT_CODES.get(type(error), 1))
        raise
    if place:
        link.exchange("done")
        jax.distributed.shutdown()
    link.close()


def meet(place: Place, facts: Mapping[str, Any], timeout: float, again: str) -> Link:
    """Reaches process 0, which listens before it does."""
    if jax.distributed.is_initialized():
        raise UserError("jax.distributed is initialized already; leave that to jaxbooth.")
    if place.index == 0:
        try:
            Coordinator(place.address, place.processes, timeout, NOTICE)
        except OSError as error:
            raise UserError(
                f"--distributed.coordinator {place.coordinator}: process 0 cannot listen there ({error.strerror}); "
                "choose another port."
            ) from None
    versions = {f"{package} version": importlib.metadata.version(package) for package in PACKAGES}
    stopped = (lambda: leave(again)) if place.index == 0 else (lambda: leave(None))
    return Link(place, versions | dict(facts), timeout, NOTICE, stopped)


def begin(place: Place, link: Alone, timeout: float) -> None:
    """Waits for all processes and starts JAX's runtime among them."""
    link.await_all()
    # The link does what JAX's own service for preemptions would: it knows of steps that are dispatched together.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator = relay(place.address) if place.index else place.coordinator
    jax.distributed.initialize(
        coordinator, place.processes, place.index, place.local_devices, initialization_timeout=int(timeout)
    )


def leave(sentence: str | None) -> None:
    """Ends this process at once, from any thread; everything on disk is whole."""
    if sentence:
        print_plain(sentence)
    exit_now(0)
