"""Asks `jaxbooth plan` about a run that is not started yet, in its own process; only the newest question counts."""

import asyncio
import json
import os
import sys
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.plan.hardware import GPUS, TPUS
from jaxbooth.ui.job import ERROR
from jaxbooth.ui.job_process import ALL_DEVICES

LOCAL = "local"
SECONDS = 180  # after which a plan is given up; timing a step on a CPU takes one minute
MAX_KEPT = 32  # answers
GPU_COUNTS = (1, 2, 4, 8)


class Devices(NamedTuple):
    """The devices of this machine.

    Attributes:
        topology: as `jaxbooth plan` takes it.
    """

    kind: str
    count: int
    platform: str
    topology: str


class Superseded(Exception):
    """A newer question has taken the place of this one."""


class PlanError(Exception):
    """`jaxbooth plan` said in a sentence why there is no plan."""


class Planner:
    """Runs `jaxbooth plan`.

    Args:
        folder: the server's own, for configurations that are handed over.
        device_sets: numbers of GPUs that a run is given; one set is what is planned for.
    """

    def __init__(self, folder: Path, device_sets: tuple[str, ...] = ()):
        self._folder, self._device_sets = folder, device_sets
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._newest: dict[str, object] = {}
        self._one_at_a_time = asyncio.Semaphore(1)
        self._answers: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._devices: Devices | None = None

    async def devices(self, is_training: bool) -> Devices | None:
        """Returns this machine's devices, asked for once; None while a run trains and nobody has asked before.

        Raises:
            PlanError: JAX finds none.
        """
        if self._devices is None and not is_training:
            async with self._one_at_a_time:
                if self._devices is None:
                    output = await self._run("devices", ["-m", "jaxbooth.ui.device_probe"], on_device=True)
                    self._devices = self._one_set(Devices(**json.loads(output)))
        return self._devices

    def _one_set(self, devices: Devices) -> Devices:
        """Returns the devices that one run has."""
        if devices.platform != "gpu" or not self._device_sets or self._device_sets == (ALL_DEVICES,):
            return devices
        count = len(self._device_sets[0].split(","))
        name = devices.topology.partition(":")[0]
        return devices._replace(count=count, topology=devices.topology if name == LOCAL else f"{name}:{count}")

    def ask(self, tab: str) -> object:
        """Registers the newest question of a page, and gives its former one up."""
        question = self._newest[tab] = object()
        former = self._running.get(tab)
        if former:
            with suppress(ProcessLookupError):
                former.terminate()
        return question

    async def plan(self, tab: str, question: object, config: Config, topology: str) -> dict[str, Any]:
        """Returns what `jaxbooth plan --json` says of a run on a topology.

        Args:
            tab: the page that asks.
            question: what `ask` has returned.

        Raises:
            Superseded: it has asked again meanwhile.
            PlanError: there is no plan.
        """
        # Whatever the run may fetch, a plan does not: half a name of a model would be asked for at every key.
        text = dump_config(resolve_paths(config).model_copy(update={"offline": True}))
        key = (text, topology)
        async with self._one_at_a_time:
            if self._newest.get(tab) is not question:
                raise Superseded
            if key not in self._answers:
                self._answers[key] = await self._run_plan(tab, question, text, topology)
                if len(self._answers) > MAX_KEPT:
                    self._answers.popitem(last=False)
            return self._answers[key]

    async def _run_plan(self, tab: str, question: object, text: str, topology: str) -> dict[str, Any]:
        """Runs `jaxbooth plan` on a configuration."""
        handle, name = tempfile.mkstemp(dir=self._folder, prefix="plan-", suffix=".yaml")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            argv = ["-m", "jaxbooth", "plan", name, "--topology", topology, "--json"]
            return json.loads(await self._run(tab, argv, on_device=topology == LOCAL))
        except Superseded:
            if self._newest.get(tab) is question:
                raise PlanError("The process that plans was killed; perhaps the memory is full.") from None
            raise
        finally:
            Path(name).unlink(missing_ok=True)

    async def _run(self, tab: str, argv: list[str], on_device: bool) -> bytes:
        """Runs a program of this package and returns what it printed.

        Raises:
            Superseded: it was ended for a newer question.
            PlanError: it failed.
        """
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}
        if not on_device:
            environment["JAX_PLATFORMS"] = "cpu"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
        )
        self._running[tab] = process
        try:
            async with asyncio.timeout(SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            raise PlanError(f"No answer within {SECONDS} seconds.") from None
        finally:
            self._running.pop(tab, None)
            with suppress(ProcessLookupError):
                process.kill()
        if process.returncode == 0:
            return output
        if process.returncode is None or process.returncode < 0:
            raise Superseded
        raise PlanError(last_error(errors.decode("utf-8", "replace")))

    def close(self) -> None:
        """Ends what runs."""
        for process in list(self._running.values()):
            with suppress(ProcessLookupError):
                process.kill()


def last_error(text: str) -> str:
    """Returns the sentence with which a command ended."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = next((line[len(ERROR) :] for line in reversed(lines) if line.startswith(ERROR)), None)
    return said or (lines[-1] if lines else "The plan ended without an answer.")


def known_topologies() -> list[str]:
    """Returns names of devices that a plan can be made for without having them."""
    gpus = [f"{chip.name}:{count}" for chip in GPUS for count in GPU_COUNTS]
    return [*gpus, *(f"{chip.name}:{shape}" for chip in TPUS for shape in chip.slice_shapes)]
