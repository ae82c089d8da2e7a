"""Which checkpoints a run keeps beside its newest: the best one, and the last before the class drifted too far.

`kept.json` in the run folder holds it, so that a resumed run goes on where it was.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import is_main
from jaxbooth.errors import UserError
from jaxbooth.metrics.definitions import DEFINITIONS
from jaxbooth.runs.drift import DRIFT
from jaxbooth.storage.files import write_json
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.text import read_json

Step = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True)
class Kept:
    """What was found so far. `read_kept` checks the types.

    Attributes:
        best: step with the best value of the metric that is watched.
        value: that value.
        since: evaluations since then.
        calm: newest checkpoint before the drift passed its limit.
        passed: step at which it did.
        stopped: step at which training ended early.
        metric, limit: what this was judged by; where a continued run has others, it is judged anew.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    best: Step | None = None
    value: Annotated[float, Field(strict=True)] | None = None
    since: Step = 0
    calm: Step | None = None
    passed: Step | None = None
    stopped: Step | None = None
    metric: str | None = None
    limit: float | None = None

    @property
    def pinned(self) -> set[int]:
        """Steps whose checkpoints stay."""
        return {step for step in (self.best, self.calm) if step is not None}


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value of a metric beats the best one so far."""
    return best is None or (value > best if DEFINITIONS[metric].better == "higher" else value < best)


def judge(kept: Kept, config: Config, step: int, figures: dict[str, float], newest: int | None) -> Kept:
    """Returns what is kept after a validation; pure.

    Args:
        figures: of this validation.
        newest: newest checkpoint at or before `step`.
    """
    limit, watched = config.validation.drift_limit, config.evaluation.keep_best
    if kept.metric != watched:
        kept = replace(kept, metric=watched, best=None, value=None, since=0)
    if kept.limit != limit:
        kept = replace(kept, limit=limit, calm=None, passed=None)
    if limit is not None and DRIFT in figures and kept.passed is None:
        calm = figures[DRIFT] <= limit
        kept = replace(kept, calm=newest if calm else kept.calm, passed=None if calm else step)
    name = f"eval/{watched}"
    if step and name in figures:
        assert watched
        if is_better(watched, figures[name], kept.value):
            kept = replace(kept, best=step, value=figures[name], since=0)
        else:
            kept = replace(kept, since=kept.since + 1)
        patience = config.evaluation.patience
        if patience is not None and kept.since >= patience:
            kept = replace(kept, stopped=step)
    return kept


class Keeper:
    """The state of `judge` over a run, on disk."""

    def __init__(self, path: Path, config: Config, done: int):
        self._path, self._config = path, config
        self.kept = read_kept(path) if done else Kept()
        # A run that was told to train on after it had ended early starts to count anew.
        self.kept = replace(self.kept, stopped=None, since=0) if self.kept.stopped else self.kept

    def see(self, step: int, figures: dict[str, float], newest: int | None) -> None:
        """Takes a validation's figures in, and writes down what follows."""
        kept = judge(self.kept, self._config, step, figures, newest)
        if kept != self.kept and is_main():
            write_json(self._path, asdict(kept))
        self.kept = kept

    def is_best(self, step: int) -> bool:
        """Whether the checkpoint of a step is the best so far."""
        return self.kept.best == step


def read_kept(path: Path) -> Kept:
    """Reads what was found so far; nothing was where there is no file.

    Raises:
        UserError: the file is damaged; the message names the key.
    """
    if not path.exists():
        return Kept()
    remedy = "put it back, or remove it to judge the coming validations alone"
    try:
        return TypeAdapter(Kept).validate_python(read_json(path, remedy))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {ascii_repr(key)} = {ascii_repr(first['input'])} is not valid; {remedy}.") from None


def stopped_at(path: Path) -> int | None:
    """Returns the step at which a run ended early, if it did."""
    return read_kept(path).stopped


def findings(kept: Kept, config: Config) -> list[str]:
    """Returns what the run's end says about its checkpoints, in sentences."""
    found, metric, limit = [], config.evaluation.keep_best, config.validation.drift_limit
    if kept.stopped is not None:
        found.append(f"ended early at step {kept.stopped}: {kept.since} evaluations without a better {metric}")
    if kept.best is not None:
        found.append(f"best {metric}: {kept.value:.4f} at step {kept.best}, which is kept (--step {kept.best})")
    if kept.passed is not None:
        before = f"of step {kept.calm}, which is kept (--step {kept.calm})" if kept.calm else "none"
        found.append(f"the class drifted past {limit} by step {kept.passed}; the last checkpoint before is {before}")
    elif limit is not None:
        found.append(f"the class did not drift past {limit}")
    return found
