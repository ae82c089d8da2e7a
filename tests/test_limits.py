"""Every number has bounds, every text a length, and what is beyond them is refused in one sentence with the bound."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from jaxbooth.cli.evaluate import EvaluateArguments
from jaxbooth.cli.export import ExportArguments
from jaxbooth.cli.plan import PlanArguments
from jaxbooth.cli.sample import SampleArguments
from jaxbooth.cli.train_many import ManyArguments
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.section import Section

COMMANDS = (SampleArguments, ExportArguments, EvaluateArguments, PlanArguments, ManyArguments)


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for field in kind.model_fields.values():
        if isinstance(field.default, Section):
            yield from sections(type(field.default))


KINDS = [*sections(Config), Subject, *COMMANDS]


def numbers(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """Yields each number type within an annotation, with its bounds."""
    if get_origin(annotation) is Annotated:
        yield from numbers(get_args(annotation)[0], (*metadata, *annotation.__metadata__))
    elif annotation in (int, float):
        yield annotation, metadata
    else:
        for part in get_args(annotation):
            if part is not Ellipsis and not isinstance(part, str):
                yield from numbers(part, metadata)


KEYS = [
    pytest.param(kind, key, number, bounds, id=f"{kind.__name__}.{key}")
    for kind in KINDS
    for key, field in kind.model_fields.items()
    for number, bounds in numbers(field.annotation, tuple(field.metadata))
]


@pytest.mark.parametrize(("kind", "key", "number", "bounds"), KEYS)
def test_a_number_has_both_bounds_and_the_message_names_the_upper_one(tmp_path, kind, key, number, bounds):
    assert any(isinstance(bound, Ge | Gt) for bound in bounds)
    [upper] = [bound.le if isinstance(bound, Le) else bound.lt for bound in bounds if isinstance(bound, Le | Lt)]
    for value in (upper + 1, 10**30):
        with pytest.raises(ValueError, match=rf"{key}\S*\n.* less than (or equal to )?{upper}") as refusal:
            kind.__pydantic_validator__.validate_assignment(kind.model_construct(), key, value)
        assert kind.__name__ in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308])
@pytest.mark.parametrize(("kind", "key", "number", "bounds"), KEYS)
def test_no_number_is_infinite_or_none_at_all(kind, key, number, bounds, value):
    with pytest.raises(ValueError, match=key):
        kind.__pydantic_validator__.validate_assignment(kind.model_construct(), key, value)
