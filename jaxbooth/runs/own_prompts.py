"""Prompts that a run did not know when it encoded its own and dropped its text encoder: encoded beside the training."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.errors import UserError
from jaxbooth.runs.prompt_process import EMBEDDINGS, TASK, PromptTask, read_embeddings
from jaxbooth.storage.files import remove_tree

MAX_KNOWN = 64  # prompts whose embeddings stay in memory, a few megabytes each
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
LOG = "log"  # in the temporary folder


@dataclass
class Encoding:
    """A prompt that is being encoded.

    Attributes:
        folder: a temporary one, with what the process prints and writes.
    """

    prompt: str
    folder: Path
    process: subprocess.Popen[bytes]

    def end(self) -> None:
        """Ends the process and removes its folder."""
        self.process.kill()
        self.process.communicate()
        remove_tree(self.folder)


@dataclass
class OwnPrompts:
    """Encodes prompts in a process of its own, one at a time, while the training goes on.

    Attributes:
        like: embeddings of the run's prompts, whose dtypes all have.
        known: prompt -> embeddings, (1, s, d) on the host; or a sentence that says why there are none.
    """

    base: BaseModel
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
        known = self.known.get(prompt)
        if isinstance(known, str):
            del self.known[prompt]  # who asks again may have made room
            raise UserError(known)
        if known is None:
            self.encoding = self.encoding or start(self.base, prompt)
            return None
        self.known[prompt] = self.known.pop(prompt)  # the last one to be forgotten
        return known

    def close(self) -> None:
        """Ends the process."""
        if self.encoding:
            self.encoding.end()
            self.encoding = None

    def _finish(self) -> None:
        """Takes what a process that has ended left."""
        if self.encoding is None or self.encoding.process.poll() is None:
            return
        if len(self.known) == MAX_KNOWN:
            del self.known[next(iter(self.known))]
        self.known[self.encoding.prompt] = result(self.encoding, self.like)
        self.close()


def start(base: BaseModel, prompt: str) -> Encoding:
    """Starts a process that encodes a prompt; it begins with reading weights, and takes seconds to minutes."""
    folder = Path(tempfile.mkdtemp(prefix="jaxbooth-prompt-"))
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxbooth.runs.prompt_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | ON_CPU,
            process_group=0,  # a Ctrl-C is the training's, which ends it
        )
    task = PromptTask(prompt, base.folder.absolute(), base.dtype.name, base.quantization)
    assert process.stdin
    process.stdin.write(TASK.dump_json(task) + b"\n")
    process.stdin.flush()
    return Encoding(prompt, folder, process)


def result(encoding: Encoding, like: TextEmbeddings) -> TextEmbeddings | str:
    """Returns the embeddings that a process has left, or why it has not."""
    if encoding.process.returncode == 0:
        return read_embeddings(encoding.folder / EMBEDDINGS, like)
    lines = (encoding.folder / LOG).read_text("utf-8", "replace").splitlines()
    reason = next((line for line in reversed(lines) if line.strip()), "")
    if encoding.process.returncode < 0:
        reason = f"It was killed by signal {-encoding.process.returncode}; there may be too little memory."
    return f"The text encoder is not in memory while this model trains, and could not be run beside it. {reason}"
