"""The base class of configuration sections, and the names of their keys: dotted in files, with dashes as flags."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from jaxbooth.storage.paths import is_utf8


class Section(BaseModel):
    """Frozen values. An unknown key is an error. The docstring below a key is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Joins the lines of help texts."""
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            if field.description:
                field.description = " ".join(field.description.split())

    @field_validator("*", mode="before")
    @classmethod
    def refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false as numbers; Python takes them for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("truth_value", "Input should not be true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def refuse_unwritable_text(cls, value: Any) -> Any:
        """Refuses texts and paths that could not be written to a file or be a file name."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and ("\0" in str(text) or not is_utf8(str(text))):
                raise PydanticCustomError("unwritable", "it holds a NUL character or is not UTF-8")
        return value


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value, in schema order."""
    flat: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else {prefix + key: value}
    return flat


def flag(key: str) -> str:
    """Returns the command-line flag of a dotted key."""
    return "--" + key.replace("_", "-")
