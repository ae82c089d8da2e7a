"""What a form says, as others type it: the command line and the YAML file that mean the same configuration."""

from pathlib import Path
from typing import Any

import yaml

from jaxbooth.config.load import load_config, reset_dependent_keys
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.console.messages import shell_quote


def changed_values(config: Config, base: Config) -> dict[str, Any]:
    """Returns dotted key -> value of what has to be set over a base to get a configuration."""
    wanted, values = flatten(config), flatten(base)
    changed = {key: value for key, value in wanted.items() if values[key] != value}
    values = flatten(reset_dependent_keys(base, changed))  # as the command line does
    return {key: value for key, value in wanted.items() if values[key] != value}


def command_parts(config: Config, start: str | None) -> list[str] | None:
    """Returns the command that trains a configuration, flag by flag; None where flags cannot say it.

    Args:
        start: the shipped configuration or the file that it is based on; None: the defaults.
    """
    changed = changed_values(config, load_config(start))
    if any(not can_be_flag(key, value) for key, value in changed.items()):
        return None
    parts = [["jaxbooth", "train", *([start] if start else [])]]
    parts += [flag_words(key, value) for key, value in changed.items()]
    return [" ".join(map(shell_quote, part)) for part in parts]


def can_be_flag(key: str, value: Any) -> bool:
    """Whether the command line reads a value as what it is: it knows no subjects, and takes None for nothing."""
    if key == "data.subjects":
        return False
    texts = value if isinstance(value, tuple) else (value,)
    is_misread = any(isinstance(text, str | Path) and str(text) in ("None", "") for text in texts)
    return not is_misread and not (isinstance(value, tuple) and any(str(text).startswith("-") for text in value))


def flag_words(key: str, value: Any) -> list[str]:
    """Returns the words that set a key."""
    name = flag(key)
    match value:
        case bool():
            section, _, leaf = name.rpartition(".")
            off = f"{section}.no-{leaf}" if section else f"--no-{name.removeprefix('--')}"
            return [name if value else off]
        case tuple():
            return [name, *map(str, value)]
        case str() if value.startswith("-"):
            return [f"{name}={value}"]
    return [name, str(value)]


def yaml_text(config: Config) -> str:
    """Returns a YAML file that holds what differs from the defaults; `load_config` reads it back to the same."""
    defaults, plain = flatten(Config()), config.model_dump(mode="json")
    document: dict[str, Any] = {}
    for key, value in flatten(config).items():
        if value != defaults[key]:
            section, _, leaf = key.rpartition(".")
            target = document.setdefault(section, {}) if section else document
            target[leaf] = (plain[section] if section else plain)[leaf]
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
