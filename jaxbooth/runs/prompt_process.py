"""The process that encodes one prompt beside a training: `python -m jaxbooth.runs.prompt_process RUN OUT < PROMPT`.

It runs the text encoder on the host's CPU, where it takes nothing from the devices that train, and is the first to be
ended where memory runs out.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from jaxbooth.base.encoded_prompts import encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.console.numbers import format_gib
from jaxbooth.errors import UserError, format_message
from jaxbooth.plan.encoding import encoding_bytes
from jaxbooth.plan.hardware import available_host_memory
from jaxbooth.runs.folder import open_run
from jaxbooth.runs.restore import read_base
from jaxbooth.sharding import make_mesh

NICENESS = 10  # the training's own host work comes first
FIRST_TO_END = b"1000"


def main() -> None:
    """Encodes the prompt on the standard input with a run's text encoder, and writes the embeddings."""
    run, out = sys.argv[1:]
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_END)
    try:
        base = read_base(open_run(run)[1])
        check_memory(base)
        prompt = sys.stdin.buffer.read().decode()
        [encoded] = encode_ahead(base, host_mesh(), [prompt], on_host=True, batch_size=1)
    except UserError as error:
        sys.exit(format_message(str(error)))
    write_embeddings(Path(out), encoded.text)


def host_mesh() -> Mesh:
    """Returns the mesh of this process's only device, the CPU."""
    return make_mesh(devices=jax.devices()[:1])


def check_memory(base: BaseModel) -> None:
    """Refuses a text encoder that the host has no memory for beside what runs.

    Raises:
        UserError: the message says how much is missing.
    """
    needed = encoding_bytes(base, host_mesh().abstract_mesh, "cpu")
    free = available_host_memory()
    if free is not None and needed > free:
        raise UserError(
            f"The text encoder needs {format_gib(needed)} of this machine's memory and {format_gib(free)} are free. "
            "Ask for a prompt of the sample grids, or stop the run and sample from its checkpoint."
        )


def write_embeddings(path: Path, text: TextEmbeddings) -> None:
    """Writes embeddings of one prompt, in float32, which holds those of any dtype."""
    arrays = {name: value for name, value in text._asdict().items() if value is not None}
    save_file({name: np.asarray(value, np.float32) for name, value in arrays.items()}, path)


def read_embeddings(path: Path, like: TextEmbeddings) -> TextEmbeddings:
    """Reads embeddings that were written, in the dtypes of others."""
    columns: dict[str, Any] = load_file(path)
    return TextEmbeddings(**{name: column.astype(getattr(like, name).dtype) for name, column in columns.items()})


if __name__ == "__main__":
    main()
