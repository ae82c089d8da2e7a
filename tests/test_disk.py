"""A disk without room: known before a run begins where it can be, one sentence where not, and nothing is damaged."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jaxbooth.errors import UserError
from jaxbooth.runs.metric_writer import MetricWriter, read_metrics
from jaxbooth.runs.tensorboard import EventWriter
from jaxbooth.storage.disk import DiskRequirement, check_space, check_writable, format_bytes, free_bytes, is_full

LIMITED = """
import resource, signal, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def limited(code: str, limit: int, *arguments: object) -> str:
    """Runs code in a process whose files may not grow beyond `limit` bytes, and returns what it prints."""
    command = [sys.executable, "-c", LIMITED + code, str(limit), *map(str, arguments)]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_needs_of_one_disk_are_added_and_what_is_missing_is_said_in_bytes(tmp_path):
    half = free_bytes(tmp_path) * 6 // 10
    needs = [
        DiskRequirement(tmp_path / "run", "--run-dir", "3 checkpoints", half),
        DiskRequirement(tmp_path / "class", "--x", "more", half),
    ]
    check_space(needs[:1])
    with pytest.raises(UserError) as refused:
        check_space(needs)
    assert str(refused.value).startswith(f"--run-dir {tmp_path / 'run'} has ")
    assert f"needs about {format_bytes(2 * half)} there (3 checkpoints, more)" in str(refused.value)


def test_a_folder_that_cannot_be_written_is_named_with_its_key(tmp_path):
    check_writable(tmp_path / "a" / "b", "--data.class-dir")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--data.class-dir /proc/images cannot be written \("):
        check_writable(Path("/proc/images"), "--data.class-dir")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_seen_in_errors_of_every_kind_and_in_what_they_came_from(number):
    def outer(cause: Exception) -> Exception:
        error = RuntimeError("saving failed")
        error.__cause__ = cause
        return error

    text = ValueError(f"RESOURCE_EXHAUSTED: writing: [OS error {number}: {os.strerror(number)}]")
    assert all(map(is_full, (OSError(number, os.strerror(number)), text, outer(text))))
    assert not any(map(is_full, (OSError(errno.EACCES, "denied"), outer(ValueError("RESOURCE_EXHAUSTED: device")))))


def test_sizes_are_written_in_the_unit_that_suits_them():
    assert [format_bytes(size) for size in (12_340_000_000, 999_900_000, 50_000)] == ["12.34 GB", "999.9 MB", "0.1 MB"]


WRITE = """
from jaxbooth.storage.files import write_bytes
from pathlib import Path
try:
    write_bytes(Path(sys.argv[2]), b"x" * 5000)
except OSError as error:
    print(error.filename)
"""


def test_a_file_that_does_not_fit_is_named_and_leaves_the_old_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    assert limited(WRITE, 4000, tmp_path / "a.png") == f"{tmp_path / 'a.png'}\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"old"}


LOG = """
from jaxbooth.runs.metric_writer import MetricWriter
from pathlib import Path
root = Path(sys.argv[2])
writer = MetricWriter(root / "metrics.jsonl", root / "tensorboard", 0)
try:
    for step in range(1, 101):
        writer.log_step(step, {"loss": 0.5})
        writer.flush()
except OSError as error:
    print(step, error.filename)
"""


def test_metrics_that_do_not_fit_end_the_run_and_whole_lines_are_kept(tmp_path):
    step, name = limited(LOG, 1000, tmp_path).split()
    assert name == str(tmp_path / "tensorboard")  # whose files grow faster
    kept = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in kept] == list(range(1, len(kept) + 1))
    assert int(step) - 1 <= len(kept) <= int(step)
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 5)
    writer.log_step(6, {"loss": 0.25})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


SAVE = """
import jax.numpy as jnp, numpy as np
from pathlib import Path
from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.training.state import TrainState
noise = jnp.asarray(np.random.default_rng(0).normal(size=(300, 1000)), jnp.float32)
checkpoints = Checkpoints(Path(sys.argv[2]), 2)
checkpoints.save(TrainState(jnp.int32(1), {"unet.a": noise[:10]}, (), {}), 1, Config())
checkpoints.wait()
try:
    checkpoints.save(TrainState(jnp.int32(2), {"unet.a": noise}, (), {}), 2, Config())
    checkpoints.wait()
except RunFailure as error:
    print(error, flush=True)
"""


def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_the_one_before_stays(tmp_path):
    told = limited(SAVE, 200_000, tmp_path)
    assert told.startswith(f"the disk is full ({tmp_path}); earlier checkpoints are intact")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "1"
    assert names[1:] in ([], ["2.orbax-checkpoint-tmp"])


def events(folder: Path) -> list[Any]:
    """Reads the records of the only event file: an eight-byte length, four bytes, the record, four bytes."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_a_board_hides_later_steps_and_has_curves_and_images(tmp_path):
    board = EventWriter(tmp_path, 7)
    board.scalar("loss", 0.5, 8)
    board.image("samples", np.full((4, 6, 3), 255, np.uint8), 8)
    board.close()
    version, start, loss, samples = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (8, 1)
    assert (loss.step, loss.summary.value[0].tag, loss.summary.value[0].simple_value) == (8, "loss", 0.5)
    image = samples.summary.value[0].image
    assert (samples.step, image.height, image.width) == (8, 4, 6)
    with Image.open(io.BytesIO(image.encoded_image_string)) as decoded:
        assert decoded.convert("RGB").getpixel((5, 3)) == (255, 255, 255)
