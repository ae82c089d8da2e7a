"""Processes of one JAX program that write checkpoints of their own, none of which waits for another."""

import subprocess
import sys

from jaxbooth.runs.checkpoint import Checkpoints
from tests.commands import environment
from tests.processes import free_port, outputs

STEPS = 60  # many enough that the saves of both meet
SAVE_ALONE = f"""
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp
from jaxbooth.config.run_config import Config
from jaxbooth.distributed.run_scope import independent_processes
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.training.state import TrainState
state = TrainState(jnp.int32(0), {{"unet": {{"kernel": jnp.ones(64)}}}}, (), {{}})
with independent_processes():
    checkpoints = Checkpoints(Path(sys.argv[3]) / sys.argv[2], keep=2)
    for step in range(1, {STEPS} + 1):
        checkpoints.save(state, step, Config())
    checkpoints.close()
"""


def test_none_waits_for_the_folders_of_another(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_ALONE, address, str(index), str(tmp_path)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    texts = outputs(running, timeout=250)  # Orbax gives up after 300
    assert [process.returncode for process in running] == [0, 0], texts
    assert [Checkpoints(tmp_path / str(index)).latest() for index in range(2)] == [STEPS] * 2
