"""Prompts that a run did not know when it encoded its own and dropped its text encoder: encoded beside the training."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.errors import UserError
from jaxbooth.runs.prompt_process import read_embeddings

MAX_KNOWN = 64  # prompts whose embeddings stay in memory, a few megabytes each
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}


@dataclass
class Encoding:
    """A prompt that is being encoded.

    Attributes:
        folder: a temporary one.
        out: the embeddings, in it.
        log: what the process printed, in it.
    """

    prompt: str
    folder: tempfile.TemporaryDirectory[str]
    out: Path
    log: Path
    process: subprocess.Popen[bytes]


@dataclass
class OwnPrompts:
    """Encodes prompts in a process of its own, one at a time, while the training goes on.

    Attributes:
        run: the run's folder.
        like: embeddings of the run's prompts, whose dtypes all have.
        known: prompt -> embeddings, (1, s, d) on the host; or a sentence that says why there are none.
    """

    run: Path
    like: TextEmbeddings
    known: dict[str, TextEmbeddings | str] = field(default_factory=dict)
    encoding: Encoding | None = None

    def is_busy(self) -> bool:
        """Whether a prompt is being encoded. Costs one look at a process."""
        return self.encoding is not None and self.encoding.process.poll() is None

    def get(self, prompt: str) -> TextEmbeddings | None:
        """Returns the embeddings of a prompt, or None and begins to encode it, unless it must wait for another.

        Raises:
            UserError: it cannot be encoded.
        """
        self._finish()
        found = self.known.get(prompt)
        if isinstance(found, str):
            del self.known[prompt]  # who asks again may have made room
            raise UserError(found)
        if found is None:
            self.encoding = self.encoding or start(self.run, prompt)
            return None
        self.known[prompt] = self.known.pop(prompt)  # the last one to be forgotten
        return found

    def close(self) -> None:
        """Ends the process."""
        if self.encoding:
            self.encoding.process.kill()
            self.encoding.process.wait()
            self.encoding.folder.cleanup()
            self.encoding = None

    def _finish(self) -> None:
        """Takes what a process that has ended left."""
        if self.encoding is None or self.encoding.process.poll() is None:
            return
        if len(self.known) == MAX_KNOWN:
            del self.known[next(iter(self.known))]
        self.known[self.encoding.prompt] = result(self.encoding, self.like)
        self.close()


def start(run: Path, prompt: str) -> Encoding:
    """Starts a process that encodes a prompt; it begins with reading weights, and takes seconds to minutes."""
    folder = tempfile.TemporaryDirectory(prefix="jaxbooth-prompt-")
    out, log = Path(folder.name) / "embeddings.safetensors", Path(folder.name) / "log"
    command = [sys.executable, "-m", "jaxbooth.runs.prompt_process", str(run), str(out)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=os.environ | ON_CPU,
            start_new_session=True,  # a Ctrl-C is the training's, which ends it
        )
    assert process.stdin
    with process.stdin:
        process.stdin.write(prompt.encode())
    return Encoding(prompt, folder, out, log, process)


def result(encoding: Encoding, like: TextEmbeddings) -> TextEmbeddings | str:
    """Returns the embeddings that a process has left, or why it has not."""
    if encoding.process.returncode == 0:
        return read_embeddings(encoding.out, like)
    lines = encoding.log.read_text("utf-8", "replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "")
    if encoding.process.returncode < 0:
        said = f"It was killed by signal {-encoding.process.returncode}; there may be too little memory."
    return f"The text encoder is not in memory while this model trains, and could not be run beside it: {said}"
