"""Configurations are read from YAML files and changed key by key; whatever is wrong with them becomes one message."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jaxbooth.assets import shipped_configs
from jaxbooth.config.run_config import EMBEDDED_SUBJECT, Config
from jaxbooth.config.section import Section, flag, flatten
from jaxbooth.config.suggestions import TRAINERS, as_keys, suggest
from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.remote import as_path
from jaxbooth.storage.yaml import read_yaml

EXPECTATIONS = {  # pydantic's names of errors that speak of Python -> what is needed
    "int_parsing": "a whole number is needed",
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_parsing": "a number is needed",
    "float_type": "a number is needed",
    "bool_parsing": "true or false is needed",
    "bool_type": "true or false is needed",
    "string_type": "text is needed",
    "path_type": "a path is needed",
    "tuple_type": "a list is needed",
    "model_type": "a group of settings is needed",
}


def to_user_error(error: ValidationError, source: str | None) -> UserError:
    """Turns pydantic's error, about a whole configuration or a section, into one message.

    Args:
        source: the file that the values are from, or None if they are flags.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    sections = {type(value).__name__: [key] for key, value in Config() if isinstance(value, Section)}
    location = [str(part) for part in [*sections.get(error.title, []), *first["loc"]]]
    if ".".join(location[:-1]) in flatten(Config()):
        location.pop()  # which of several types a value was tried as
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = list(flatten(Config()))
        groups = dict.fromkeys(other.rpartition(".")[0] for other in known if "." in other)
        hint = as_keys(suggest(key, [*known, *groups], TRAINERS), known)
        return UserError(
            f"{source}: unknown key {short_repr(key)}; {hint or '`jaxbooth train --help` lists the keys.'}"
        )
    value, problem = short_repr(first["input"]), EXPECTATIONS.get(first["type"], first["msg"].lower())
    if source is None:
        return UserError(f"{flag(key)} {value} is not valid: {problem}.")
    return UserError(f"{source}: {key} = {value} is not valid: {problem}.")


def load_config(source: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration: a YAML file, the name of a shipped one (`demo`, `sd15`), or None for the defaults.

    Args:
        overrides: values that replace those of the file; see `with_overrides`.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value out of range.
    """
    config = read_config_file(source)
    return with_overrides(config, overrides) if overrides else config


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values: `{"train.steps": 10}` or `{"train": {"steps": 10}}`.

    What the configuration says of its own model or embedded subject is dropped; see `reset_dependent_keys`.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    replaced = flatten_mapping(overrides)
    values = reset_dependent_keys(config, replaced).model_dump()
    for key, value in replaced.items():
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"unknown key {key!r}: {section} is a value and has no keys.")
        target[leaf] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise to_user_error(error, "the configuration") from None


def flatten_mapping(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of nested mappings; keys may have dashes, as flags do."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        flat |= flatten_mapping(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def read_config_file(source: str | Path | None) -> Config:
    """Reads the configuration that `load_config` is asked for."""
    if source is None:
        return Config()
    path = as_path(source) if "://" in str(source) else Path(source)
    if not path.is_file():
        shipped = {p.stem: p for p in shipped_configs().glob("*.yaml")}
        if str(source) not in shipped and not path.exists():
            raise UserError(
                f"{source} is neither a file nor one of the shipped configurations ({', '.join(sorted(shipped))})."
            )
        path = shipped.get(str(source), path)
    try:
        return Config.model_validate(read_yaml(path))
    except ValidationError as error:
        raise to_user_error(error, str(path)) from None


def reset_dependent_keys(config: Config, keys: Collection[str]) -> Config:
    """Returns a configuration without the keys that describe its own model or subject, if another one replaces those.

    The revision or VAE of a configuration's model does not suit another model, nor do prompts of the embedded subject
    suit a user's own.

    Args:
        keys: dotted keys that will be replaced.
    """
    if "model" in keys:
        dependent = ("revision", "variant", "vae", "prediction_type", "components")
        config = config.model_copy(update=dict.fromkeys(dependent))
    if "data.instance_dir" in keys and config.data.instance_dir == EMBEDDED_SUBJECT:
        data = config.data.model_copy(update=dict.fromkeys(("instance_prompt", "class_prompt", "class_dir")))
        config = config.model_copy(update={"data": data})
    return config


def dump_config(config: Config) -> str:
    """Returns the whole configuration as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
