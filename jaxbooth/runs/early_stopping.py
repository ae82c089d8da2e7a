"""Which checkpoints a run keeps beside its newest: the best one, and the last before the class drifted too far.

`selection.json` in the run folder holds it, so that a resumed run goes on where it was.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jaxbooth.config.held_out import VALIDATION_LOSS
from jaxbooth.config.schema import EvaluationConfig, ValidationConfig
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.metrics.definitions import DEFINITIONS
from jaxbooth.runs.drift import DRIFT
from jaxbooth.runs.held_out_loss import SUBJECT_LOSS
from jaxbooth.storage.files import write_json
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.text import read_json

Step = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True)
class Selection:
    """What was found so far. `read_selection` checks the types.

    Attributes:
        best_step: step with the best value of the metric that is watched.
        best_value: that value.
        evaluations_since_best: evaluations since then.
        last_below_drift: newest checkpoint before the drift passed its limit.
        drift_exceeded_at: step at which it did.
        stopped_at: step at which training ended early.
        metric, drift_limit: what this was judged by; where a continued run has others, it is judged anew.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    best_step: Step | None = None
    best_value: Annotated[float, Field(strict=True)] | None = None
    evaluations_since_best: Step = 0
    last_below_drift: Step | None = None
    drift_exceeded_at: Step | None = None
    stopped_at: Step | None = None
    metric: str | None = None
    drift_limit: float | None = None

    @property
    def pinned(self) -> set[int]:
        """Steps whose checkpoints stay."""
        return {step for step in (self.best_step, self.last_below_drift) if step is not None}


def logged_name(metric: str) -> str:
    """Returns the name in the logs of a metric of `evaluation.keep_best`."""
    return SUBJECT_LOSS if metric == VALIDATION_LOSS else f"eval/{metric}"


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value of a metric beats the best one so far."""
    higher = metric in DEFINITIONS and DEFINITIONS[metric].better == "higher"
    return best is None or (value > best if higher else value < best)


def update(
    selection: Selection,
    validation: ValidationConfig,
    evaluation: EvaluationConfig,
    step: int,
    metrics: dict[str, float],
    newest: int | None,
) -> Selection:
    """Returns the selection after a validation; pure.

    Args:
        metrics: of this validation.
        newest: newest checkpoint at or before `step`.
    """
    limit, metric = validation.drift_limit, evaluation.keep_best
    if selection.metric != metric:
        selection = replace(selection, metric=metric, best_step=None, best_value=None, evaluations_since_best=0)
    if selection.drift_limit != limit:
        selection = replace(selection, drift_limit=limit, last_below_drift=None, drift_exceeded_at=None)
    if limit is not None and DRIFT in metrics and selection.drift_exceeded_at is None:
        if metrics[DRIFT] <= limit:
            selection = replace(selection, last_below_drift=newest)
        else:
            selection = replace(selection, drift_exceeded_at=step)
    value = metrics.get(logged_name(metric)) if metric else None
    if step and metric and value is not None:
        selection = update_best(selection, metric, step, value)
        if evaluation.patience is not None and selection.evaluations_since_best >= evaluation.patience:
            selection = replace(selection, stopped_at=step)
    return selection


def update_best(selection: Selection, metric: str, step: int, value: float) -> Selection:
    """Returns the selection after a step with a value of the metric that is watched."""
    if is_better(metric, value, selection.best_value):
        return replace(selection, best_step=step, best_value=value, evaluations_since_best=0)
    return replace(selection, evaluations_since_best=selection.evaluations_since_best + 1)


class EarlyStopping:
    """The selection of a run, on disk.

    Args:
        path: its file.
        done: steps that an earlier process did.
    """

    def __init__(self, path: Path, validation: ValidationConfig, evaluation: EvaluationConfig, done: int):
        self._path, self._validation, self._evaluation = path, validation, evaluation
        self.selection = read_selection(path) if done else Selection()
        if self.selection.stopped_at:  # a run that was told to train on after it had ended early counts anew
            self.selection = replace(self.selection, stopped_at=None, evaluations_since_best=0)

    def observe(self, step: int, metrics: dict[str, float], newest: int | None) -> None:
        """Takes a validation's metrics in, and writes down what follows."""
        selection = update(self.selection, self._validation, self._evaluation, step, metrics, newest)
        if selection != self.selection and is_writer():
            write_json(self._path, asdict(selection))
        self.selection = selection

    def is_best(self, step: int) -> bool:
        """Whether the checkpoint of a step is the best so far."""
        return self.selection.best_step == step


def read_selection(path: Path) -> Selection:
    """Reads what was found so far; nothing was where there is no file.

    Raises:
        UserError: the file is damaged; the message names the key.
    """
    if not path.exists():
        return Selection()
    remedy = "put it back, or remove it to judge the coming validations alone"
    try:
        return TypeAdapter(Selection).validate_python(read_json(path, remedy))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {ascii_repr(key)} = {ascii_repr(first['input'])} is not valid; {remedy}.") from None


def early_stop_step(path: Path) -> int | None:
    """Returns the step at which a run ended early, if it did."""
    return read_selection(path).stopped_at


def summary(selection: Selection, validation: ValidationConfig, evaluation: EvaluationConfig) -> list[str]:
    """Returns what the end of a run says about its checkpoints, in sentences."""
    sentences, metric, limit = [], evaluation.keep_best, validation.drift_limit
    best, before = selection.best_step, selection.last_below_drift
    if selection.stopped_at is not None:
        kind = "validations" if metric == VALIDATION_LOSS else "evaluations"
        count = f"{selection.evaluations_since_best} {kind}"
        sentences.append(f"ended early at step {selection.stopped_at}: {count} without a better {metric}")
    if best is not None:
        value = f"{selection.best_value:.4f}"
        sentences.append(f"best {metric}: {value} at step {best}, which is kept (--step {best})")
    if selection.drift_exceeded_at is not None:
        kept = f"of step {before}, which is kept (--step {before})" if before else "none"
        passed = f"the class drifted past {limit} by step {selection.drift_exceeded_at}"
        sentences.append(f"{passed}; the last checkpoint before is {kept}")
    elif limit is not None:
        sentences.append(f"the class did not drift past {limit}")
    return sentences
