"""The keys of a run's configuration as fields of a form: made from the schema, so that none is missing."""

import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag

Widget = Literal["checkbox", "select", "choices", "number", "text", "list", "yaml"]
UNIONS = (Union, types.UnionType)


class Field(NamedTuple):
    """One key.

    Attributes:
        key: dotted.
        help: its docstring in the schema.
        choices: values of a select, or suggestions for a text.
        is_optional: whether it may be unset.
    """

    key: str
    help: str
    widget: Widget
    choices: tuple[str, ...]
    is_optional: bool

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return flag(self.key)

    @property
    def name(self) -> str:
        """Of the control."""
        return f"k.{self.key}"

    @property
    def id(self) -> str:
        """Of the control's element."""
        return f"k-{self.key.replace('.', '-')}"

    @property
    def label(self) -> str:
        """The last part of the key, in words."""
        return self.key.rpartition(".")[2].replace("_", " ")

    def parse(self, texts: list[str]) -> Any:
        """Returns what a form holds as a value that the schema reads; it checks it."""
        text = texts[-1].replace("\r\n", "\n") if texts else ""
        match self.widget:
            case "choices":
                return tuple(value for value in texts if value) or ("none",)
            case "checkbox":
                return text == "true"
            case "list":
                return tuple(line.strip() for line in text.split("\n") if line.strip())
            case "yaml":
                return read_list(text)
        return None if self.is_optional and not text.strip() else text


class FieldGroup(NamedTuple):
    """A section of the schema."""

    name: str
    help: str
    fields: tuple[Field, ...]

    @property
    def title(self) -> str:
        """The section's name for people."""
        return {"": "General", "lora": "LoRA"}.get(self.name, self.name.replace("_", " ").capitalize())


def read_list(text: str) -> Any:
    """Reads a YAML list; text that is none is returned as it is, which the schema refuses."""
    try:
        return yaml.safe_load(text) or ()
    except yaml.YAMLError:
        return text


def format_field(value: Any, widget: Widget) -> str:
    """Writes a value as the text of its control, which `Field.parse` reads back."""
    if value is None or value == ():
        return ""
    if widget == "yaml":
        plain = [item.model_dump(mode="json", exclude_defaults=True) for item in value]
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if isinstance(value, tuple):
        return "\n".join(map(str, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


@cache
def field_groups() -> tuple[FieldGroup, ...]:
    """Returns every key of the schema, section by section."""
    top, groups = [], []
    for name, field in Config.model_fields.items():
        if is_section(field.annotation):
            groups.append(FieldGroup(name, summary(field.annotation), tuple(section_fields(field.annotation, name))))
        else:
            top.append(make_field(name, field.annotation, field.description))
    return (FieldGroup("", "The model, the run's folder and what holds for all of it.", tuple(top)), *groups)


@cache
def fields_by_key() -> dict[str, Field]:
    """Returns dotted key -> field, in schema order."""
    return {field.key: field for group in field_groups() for field in group.fields}


def section_fields(section: Any, name: str) -> Iterator[Field]:
    """Yields the fields of a section."""
    for key, field in section.model_fields.items():
        yield make_field(f"{name}.{key}", field.annotation, field.description)


def is_section(annotation: Any) -> bool:
    """Whether a type is that of a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def summary(section: Any) -> str:
    """Returns a section's docstring on one line."""
    return " ".join((section.__doc__ or "").split())


def make_field(key: str, annotation: Any, description: str | None) -> Field:
    """Returns the field of a key."""
    parts = list(union_parts(annotation))
    options = tuple(str(option) for part in parts if get_origin(part) is Literal for option in get_args(part))
    is_optional = types.NoneType in parts
    return Field(key, description or "", choose_widget(parts), options or item_options(parts), is_optional)


def union_parts(annotation: Any) -> Iterator[Any]:
    """Yields the types that a value may have."""
    if get_origin(annotation) is Annotated:
        yield from union_parts(get_args(annotation)[0])
    elif get_origin(annotation) in UNIONS:
        for part in get_args(annotation):
            yield from union_parts(part)
    else:
        yield annotation


def item_options(parts: list[Any]) -> tuple[str, ...]:
    """Returns the values that the items of a list may have, where those are named; "none" is no item."""
    items = [get_args(part)[0] for part in parts if get_origin(part) is tuple]
    named = [option for item in items if get_origin(item) is Literal for option in get_args(item)]
    return tuple(option for option in named if option != "none")


def choose_widget(parts: list[Any]) -> Widget:
    """Returns the control that suits the types of a value."""
    kinds = [part for part in parts if part is not types.NoneType]
    if kinds == [bool]:
        return "checkbox"
    if all(get_origin(kind) is Literal for kind in kinds):
        return "select"
    if all(kind in (int, float) for kind in kinds):
        return "number"
    if any(get_origin(kind) is tuple for kind in kinds):
        item = get_args(kinds[0])[0]
        return "yaml" if is_section(item) else "choices" if get_origin(item) is Literal else "list"
    assert all(kind in (str, Path, int, float) or get_origin(kind) is Literal for kind in kinds), kinds
    return "text"
