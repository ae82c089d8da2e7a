"""The process that encodes one prompt beside a training: `python -m jaxbooth.runs.prompt_process FOLDER < INPUT`.

It runs the text encoder on half of the host's cores, where it takes nothing from the devices that train, and is the
first to be ended where memory runs out. The first line of its input is a `PromptTask` as JSON. The end of the input is
that of the training: then the process ends, too, and removes its temporary FOLDER.
"""

import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file

from jaxbooth.base.encoded_prompts import encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.console.numbers import format_gib
from jaxbooth.errors import UserError, format_message
from jaxbooth.models.quantization import Quantization
from jaxbooth.plan.encoding import encoding_bytes
from jaxbooth.plan.hardware import available_host_memory
from jaxbooth.sharding import make_mesh

EMBEDDINGS = "embeddings.safetensors"  # in the folder
NICENESS = 10
FIRST_TO_END = b"1000"


@dataclass(frozen=True)
class PromptTask:
    """What is to be encoded.

    Attributes:
        model: the base model's folder.
        dtype: that the text encoder computes in.
        quantization: of its kernels.
    """

    prompt: str
    model: Path
    dtype: str
    quantization: Quantization


TASK = TypeAdapter(PromptTask)


def main() -> None:
    """Encodes a prompt and writes its embeddings, or says in a sentence why not."""
    folder = Path(sys.argv[1])
    task = TASK.validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_the_training, args=(folder,), daemon=True).start()
    stand_back()
    try:
        write_embeddings(folder / EMBEDDINGS, encode(task))
    except Exception as error:
        sys.exit(format_message(str(error) or type(error).__name__))


def end_with_the_training(folder: Path) -> None:
    """Waits for the end of the input, which also comes when the training is killed."""
    while os.read(sys.stdin.fileno(), 1):  # not by its buffer, whose lock Python wants when it ends
        continue
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def stand_back() -> None:
    """Leaves half of the cores and all of the memory to the training, before JAX starts a thread for each core."""
    os.nice(NICENESS)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[len(cores) // 2 :])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_END)


def encode(task: PromptTask) -> TextEmbeddings:
    """Returns a prompt's embeddings, (1, s, d) on the host.

    Raises:
        UserError: there is not enough memory, or the model's files are gone or damaged.
    """
    base = BaseModel.read(task.model, task.dtype).with_quantization(task.quantization)
    mesh = make_mesh(devices=jax.devices()[:1])
    check_memory(base, mesh)
    [encoded] = encode_ahead(base, mesh, [task.prompt], on_host=True, batch_size=1)
    return encoded.text


def check_memory(base: BaseModel, mesh: Mesh) -> None:
    """Refuses a text encoder that the host has no memory for beside what runs.

    Raises:
        UserError: the message says how much is missing.
    """
    needed, free = encoding_bytes(base, mesh.abstract_mesh, "cpu"), available_host_memory()
    if free is not None and needed > free:
        raise UserError(
            f"It needs {format_gib(needed)} of this machine's memory and {format_gib(free)} are free. Ask for a prompt "
            "of the sample grids, or stop the run and sample from its checkpoint."
        )


def write_embeddings(path: Path, text: TextEmbeddings) -> None:
    """Writes embeddings in float32, which holds those of any dtype."""
    columns = {name: value for name, value in text._asdict().items() if value is not None}
    save_file({name: np.asarray(value, np.float32) for name, value in columns.items()}, path)


def read_embeddings(path: Path, like: TextEmbeddings) -> TextEmbeddings:
    """Reads embeddings that were written, in the dtypes of others."""
    columns: dict[str, Any] = load_file(path)
    return TextEmbeddings(**{name: column.astype(getattr(like, name).dtype) for name, column in columns.items()})


if __name__ == "__main__":
    main()
