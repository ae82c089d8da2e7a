"""The alphas of a LoRA file whose modules have none of their own: what diffusers writes into the file's head."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic.dataclasses import dataclass

from jaxbooth.params import without_prefix
from jaxbooth.storage.patterns import first_matches
from jaxbooth.storage.text import parse_json_object
from jaxbooth.storage.typed import STRICT, validate
from jaxbooth.weights.names import published_path

METADATA_KEY = "lora_adapter_metadata"  # diffusers `loaders/lora_base.py`


@dataclass(frozen=True, config=STRICT)
class AlphaConfig:
    """What diffusers' adapter configuration says of alphas: PEFT's `LoraConfig`, for one component."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None


class Alphas(NamedTuple):
    """The alphas of a component's modules.

    Attributes:
        matched: module -> value of the first pattern that matches it.
    """

    config: AlphaConfig
    matched: dict[str, float]

    def alpha(self, module: str, rank: int) -> float:
        """Returns a module's alpha by PEFT's rule: the first matching pattern, else `lora_alpha`, else the rank."""
        usual = rank if self.config.lora_alpha is None else self.config.lora_alpha
        return self.matched.get(module, usual) * (math.sqrt(rank) if self.config.use_rslora else 1.0)


def read_alphas(path: Path, metadata: Mapping[str, str], component: str, modules: Sequence[str]) -> Alphas:
    """Returns the alphas of a component's modules from diffusers' adapter configuration in the file's head.

    Raises:
        UserError: it is not valid JSON, a value is of another type, or a pattern is no expression or takes too long.
    """
    source = f"{path}: its {METADATA_KEY}"
    config = parse_json_object(metadata.get(METADATA_KEY) or "{}", source)
    config = without_prefix(component, config) or config  # a single network has no prefixes
    alpha_config = validate(AlphaConfig, config, source)
    patterns = alpha_config.alpha_pattern or {}
    if not patterns or not modules:
        return Alphas(alpha_config, {})
    texts = [text for module in modules for text in (module, published_path(component, module))]
    expressions = tuple(rf"(.*\.)?({pattern})$" for pattern in patterns)  # as PEFT has it
    numbers_of = first_matches(expressions, tuple(texts), f"{source}: alpha_pattern")
    values = list(patterns.values())
    matched = {}
    for index, module in enumerate(modules):
        numbers = [number for number in numbers_of[2 * index : 2 * index + 2] if number is not None]
        if numbers:
            matched[module] = values[min(numbers)]
    return Alphas(alpha_config, matched)
