"""The models that an evaluation compares: the base model, the run, and those of --compare."""

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxbooth.config.run_config import Config
from jaxbooth.pipeline import Pipeline
from jaxbooth.runs.folder import RunFolder, open_run, refuse_missing
from jaxbooth.runs.restore import open_checkpoints
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.remote import as_path
from jaxbooth.weights.fingerprint import model_fingerprint
from jaxbooth.weights.source import Source

RUN_AT_STEP = re.compile(r"(.+)@([0-9]{1,9})")  # RUN@STEP


@dataclass(frozen=True)
class ComparedModel:
    """One model of an evaluation.

    Attributes:
        name: of its folder of images.
        label: for people.
        source: run folder, or the source of a base model.
        step: of a run's checkpoint; None for a base model.
    """

    name: str
    label: str
    source: str | Source
    step: int | None

    @property
    def path(self) -> str:
        """What a user calls it."""
        return self.source.name if isinstance(self.source, Source) else self.source

    @property
    def is_run(self) -> bool:
        """Whether it has checkpoints."""
        return self.step is not None

    def load(self, mesh: Mesh, config: Config) -> Pipeline:
        """Loads its weights.

        Args:
            config: of the evaluated run, which says how a base model is read and held; a run has its own.
        """
        if self.is_run:
            return Pipeline.load(self.source, mesh=mesh, step=self.step)
        dtype, text = config.train.dtype, config.text
        return Pipeline.load(
            self.source, dtype, mesh, text.clip_skip, text.max_token_chunks, quantization=config.model_quantization
        )

    def weights_identity(self, pipeline: Pipeline) -> dict[str, Any]:
        """Returns what tells its weights from others: fingerprint, how it is held, a checkpoint's sums."""
        base = pipeline.base
        identity: dict[str, Any] = {"fingerprint": model_fingerprint(base.folder, base.components)}
        if base.quantization != "none":
            identity["quantization"] = base.quantization
        if self.is_run:
            identity["checkpoint"] = checkpoint_sums(RunFolder(as_path(self.path)), pipeline.step)
        return identity


def checkpoint_sums(run: RunFolder, step: int) -> dict[str, int]:
    """Returns the sums that a checkpoint was saved with."""
    with closing(open_checkpoints(run)) as checkpoints:
        return checkpoints.sums(step)


def existing_step(run: RunFolder, step: int | None) -> int:
    """Returns a step of which a run has a checkpoint; default: its newest.

    Raises:
        UserError: there is none.
    """
    with closing(open_checkpoints(run)) as checkpoints:
        if step is not None:
            checkpoints.check(step)
            return step
        newest = checkpoints.latest()
    assert newest is not None
    return newest


def base_model(source: Source) -> ComparedModel:
    """Returns a run's base model."""
    return ComparedModel("base", f"base model ({source.name})", source, None)


def run_model(path: str | Path, step: int | None, name: str | None = None) -> ComparedModel:
    """Returns a run at a step; default: its newest.

    Raises:
        UserError: it is no run folder, or has no checkpoint.
    """
    run, _ = open_run(path)
    step = existing_step(run, step)
    return ComparedModel(f"{name or slug(str(path))}-{step:06d}", f"{path}, step {step}", str(path), step)


def parse_model(text: str) -> ComparedModel:
    """Parses a value of --compare: a run, RUN@STEP, or a model as --model takes it.

    Raises:
        UserError: see `run_model`.
    """
    match = RUN_AT_STEP.fullmatch(text)
    path, step = (match[1], int(match[2])) if match and not Path(text).exists() else (text, None)
    if RunFolder(as_path(path)).config.exists() or step is not None:
        return run_model(path, step)
    refuse_missing(text)
    return ComparedModel(slug(text), text, Source(text), None)


def slug(text: str) -> str:
    """Returns a file name that resembles `text`."""
    return short_name(re.sub(r"\W+", "-", text).strip("-")) or "model"
