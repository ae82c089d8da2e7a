"""Runs of several processes on this machine, and a model whose step compiles in seconds."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.names import export_array, parameter_names
from tests.commands import environment
from tests.xla import QUICK

UNET = {
    "block_out_channels": [16, 32], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 8,
}  # fmt: skip
SHORT = [
    "demo", "--data.num-class-images", "4", "--prior.steps", "2", "--prior.sample-batch-size", "4", 
    "--train.batch-size", "2", "--train.prior-batch-size", "2",
    "--validation.every", "1000", "--validation.images-per-prompt", "1", "--validation.steps", "2",
    "--validation.sampler", "ddpm", "--validation.prompts", "a cat", "--train.checkpoint-every", "4",
]  # fmt: skip


def write_micro_model(micro: BaseModel, unet: Mapping[str, np.ndarray], folder: Path) -> Path:
    """Writes the embedded model with another UNet, the one of conftest's `micro`."""
    shutil.copytree(DEMO_MODEL, folder)
    write_json(folder / "unet" / "config.json", read_json(DEMO_MODEL / "unet" / "config.json") | UNET)
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    tensors = {name: export_array(own, unet[own]) for name, own in parameter_names(micro.denoiser.shapes).items()}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(command: list[object], port: int, processes: int, index: int, devices: int) -> subprocess.Popen[str]:
    """Starts one process of several, with CPU devices of its own."""
    place = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", processes]
    arguments = [*command, *place, "--distributed.process-id", index]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxbooth", *map(str, arguments)],
        env=environment(f"{QUICK} --xla_force_host_platform_device_count={devices}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start_all(command: list[object], processes: int, devices: int = 4) -> list[subprocess.Popen[str]]:
    """Starts the same command in every process; `devices` are shared out among them."""
    port = free_port()
    return [start(command, port, processes, index, devices // processes) for index in range(processes)]


def outputs(running: list[subprocess.Popen[str]], timeout: float = 900) -> list[str]:
    """Waits for all processes and returns what they printed."""
    return [process.communicate(timeout=timeout)[0] for process in running]


def check_told_of(victim: int, output: str, seconds: float) -> None:
    """Checks what a process says whose fellow was killed: one sentence, and nothing from below Python."""
    assert seconds < 15
    sentence = rf"error: process {victim}( \(.*\))? is gone: it was killed, or its machine stopped\."
    assert len(re.findall(sentence, output)) == output.count("error:") == 1, output
    assert not re.search(r"Traceback|\*\*\*|\.cc:\d|\.h:\d|Abort|core dumped", output), output
