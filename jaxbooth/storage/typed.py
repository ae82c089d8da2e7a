"""Values from JSON files of models are validated: each has a type and a range, and what is wrong becomes one message.

The classes are pydantic dataclasses with the settings `STRICT`: `true` is not a number, `"3"` is not an integer, and
NaN is not allowed.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr

T = TypeVar("T")
Item = TypeVar("Item")
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
JsonList = Annotated[tuple[Item, ...], Strict(False)]  # JSON's arrays arrive as lists


def json_equal(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal; other than in Python, `false` is not 0."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def square(value: Any) -> Any:
    """Returns the side of a square that is given as (height, width), and any other value unchanged.

    Raises:
        ValueError: height and width differ.
    """
    if isinstance(value, list | tuple) and len(value) == 2:
        if not json_equal(value[0], value[1]):
            raise ValueError("only squares are supported")
        return value[0]
    return value


# Bounds that no model exceeds; larger values mean a damaged file and would only fill the memory.
Width = Annotated[int, Field(ge=1, le=2**16)]  # channels, features, positions
Layers = Annotated[int, Field(ge=1, le=128)]  # in one stack
Heads = Annotated[int, Field(ge=1, le=2**10)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Square = BeforeValidator(square)  # of an integer that may also be written as height and width


def json_keys(cls: type) -> set[str]:
    """Returns the keys that a pydantic dataclass has fields for: the alias of a field that has one, else its name."""
    return {field.alias or name for name, field in cls.__pydantic_fields__.items()}  # ty: ignore[missing-attribute]


def validate(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Builds an instance of `cls` from those `values` that it has fields for.

    Args:
        source: the file, for the message.

    Raises:
        UserError: a value has another type, or is out of range; the message names its key.
    """
    keys = json_keys(cls)
    try:
        return cls(**{key: value for key, value in values.items() if key in keys})
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(error, values)}") from None


def first_problem(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Returns a message about the first value that pydantic rejects."""
    problem = error.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not problem["loc"]:  # of several values together: the check itself names them
        return f"{message}; the file is damaged or of another model."
    key = str(problem["loc"][0])
    return f"{key} = {ascii_repr(values.get(key))} is not valid: {message[:1].lower()}{message[1:]}."


def check_lengths(levels: int, **values: Any) -> None:
    """Refuses lists that do not have one entry for each level; a single value stands for all levels.

    Raises:
        ValueError: the message names the key.
    """
    for key, value in values.items():
        if isinstance(value, tuple) and len(value) != levels:
            raise ValueError(f"{key} has {len(value)} entries for {levels} levels")


def check_divides(key: str, divisor: int, widths: Iterable[int]) -> None:
    """Refuses a number of groups or heads that does not divide each of `widths`.

    Raises:
        ValueError: the message names the key.
    """
    uneven = next((width for width in widths if width % divisor), None)
    if uneven is not None:
        raise ValueError(f"{key} {divisor} does not divide {uneven} channels")
