"""A run's settings for a reader: what was chosen, what it is elsewhere, and all of it."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from pydantic import BaseModel

from jaxbooth.config.run_config import Config, flatten

ELSEWHERE = ("run_dir", "force", "distributed.")  # said in the head, or about the machine and not the run


class Setting(NamedTuple):
    """One key of a configuration, in words.

    Attributes:
        values: of each run.
        default: what it is when nobody sets it.
    """

    key: str
    values: tuple[str, ...]
    default: str

    @property
    def changed(self) -> tuple[bool, ...]:
        """Whether each run's value differs from the default."""
        return tuple(value != self.default for value in self.values)

    @property
    def differs(self) -> bool:
        """Whether the runs differ."""
        return len(set(self.values)) > 1


def compare_settings(configs: Sequence[Config]) -> list[Setting]:
    """Returns all settings of one or several runs, in schema order."""
    flat, defaults = [flatten(config) for config in configs], flatten(Config())
    return [
        Setting(key, tuple(format_value(each[key]) for each in flat), format_value(default))
        for key, default in defaults.items()
        if not key.startswith(ELSEWHERE)
    ]


def format_value(value: Any) -> str:
    """Writes a value as a YAML file would, without its punctuation."""
    match value:
        case None | ():
            return "not set"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case tuple():
            return "\n".join(map(format_value, value))
        case BaseModel():
            given = {key: each for key, each in value if each is not None}
            return ", ".join(f"{key}: {format_value(each)}" for key, each in given.items())
        case PurePath() | str() | int():
            return str(value)
    return repr(value)


def describe_trained(config: Config) -> str:
    """Says what of the model is trained."""
    words = ", ".join(config.text.placeholder_tokens)
    if words and config.text.token_training == "textual-inversion":
        return f"the placeholder tokens {words}"
    parts = [f"LoRA of rank {config.lora.rank}" if config.lora.rank else "the whole UNet"]
    parts += ["text encoder"] if config.train.text_encoder else []
    parts += [f"the placeholder tokens {words}"] if words else []
    return ", ".join(parts)
