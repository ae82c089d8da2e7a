"""One entry of a manifest: what may differ between the subjects of one program, and how an entry is checked."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError
from pydantic_core import PydanticCustomError

from jaxbooth.config import limits
from jaxbooth.config.load import to_user_error
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import Section, flatten
from jaxbooth.config.suggestions import TRAINERS, as_keys, suggest
from jaxbooth.errors import UserError, short_repr

RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
# what `train-many` itself keeps in the folder of all runs
RESERVED_NAMES = (
    "program.yaml", "manifest.jsonl", "status.jsonl", "checkpoints", "class_images", "report.html",
    "tensorboard",
)  # fmt: skip
# key of an entry -> key of the configuration that it replaces
CONFIG_KEYS = {
    "instance_dir": "data.instance_dir",
    "instance_prompt": "data.instance_prompt",
    "class_prompt": "data.class_prompt",
    "class_dir": "data.class_dir",
    "seed": "seed",
    "steps": "train.steps",
    "learning_rate": "train.learning_rate",
    "validation_prompts": "validation.prompts",
}
ENTRY_KEYS = {key: name for name, key in CONFIG_KEYS.items()}


def check_run_name(name: str) -> str:
    """Refuses a name that cannot be a folder beside the files of `train-many`."""
    if not RUN_NAME.fullmatch(name):
        raise PydanticCustomError(
            "run_name", "a folder's name is needed: letters, digits, -, _ and ., not first a dot, 128 at most"
        )
    if name.lower() in RESERVED_NAMES:
        raise PydanticCustomError("run_name", "train-many keeps something else under that name")
    return name


class ManifestEntry(Section):
    """What may differ between the subjects of one program. What is not set is the program's."""

    name: Annotated[str, AfterValidator(check_run_name)]
    """Name of the subject's run, which is the folder --run-dir/NAME."""
    instance_dir: Path
    """Folder with images of this subject, relative to the manifest's folder. "demo": the demo's."""
    instance_prompt: limits.Prompt | None = None
    """Prompt with this subject's identifier."""
    class_prompt: limits.Prompt | None = None
    """Prompt of its class."""
    class_dir: Path | None = None
    """Folder of class images, relative to the manifest's folder."""
    seed: limits.Seed | None = None
    """Determines noise, timesteps, the order of images and crops."""
    steps: limits.TrainSteps | None = None
    """Length of this subject's run."""
    learning_rate: limits.Rate | None = None
    """Peak learning rate."""
    validation_prompts: limits.Prompts | None = None
    """Prompts of the images sampled while training."""


def parse_entry(values: Any, source: str, shared: Mapping[str, Any]) -> tuple[ManifestEntry, str]:
    """Validates an entry.

    Args:
        source: the file and line.
        shared: dotted key -> value of the program; an entry may repeat those.

    Returns:
        The entry, and what messages call it: file, line and name.

    Raises:
        UserError: the message names the key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected keys and values, such as name: mug, found {type(values).__name__}.")
    name = values.get("name")
    where = f"{source} ({name})" if isinstance(name, str) and RUN_NAME.fullmatch(name) else source
    for key, value in settings(values):
        if key not in ManifestEntry.model_fields:
            check_shared(key, value, where, shared)
    own = {key: values[key] for key in ManifestEntry.model_fields if key in values}
    if own.get("name") is None:
        raise UserError(f"{where}: name is missing; it becomes the name of the subject's run folder.")
    if own.get("instance_dir") in (None, ""):
        raise UserError(f"{where}: instance_dir is missing: the folder with the subject's images.")
    try:
        return ManifestEntry.model_validate(own), where
    except ValidationError as error:
        raise to_user_error(error, where) from None


def settings(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values of an entry; sections may be nested, the entry's own keys are not."""
    for part, value in values.items():
        key = f"{prefix}{part}"
        if isinstance(value, Mapping) and key not in ManifestEntry.model_fields:
            yield from settings(value, f"{key}.")
        else:
            yield key, value


def check_shared(key: str, value: Any, where: str, shared: Mapping[str, Any]) -> None:
    """Refuses a key that an entry does not have, unless it repeats what the program has.

    Raises:
        UserError: the key is unknown, is written otherwise in a manifest, or has another value than the program's.
    """
    if key in ENTRY_KEYS:
        raise UserError(f"{where}: {key} is written {ENTRY_KEYS[key]} in a manifest.")
    if key not in shared:
        raise UserError(f"{where}: unknown key {short_repr(key)}; {suggest_key(key, shared)}")
    content = value
    for part in reversed(key.split(".")):
        content = {part: content}
    try:
        wanted = flatten(Config.model_validate(content))[key]
    except ValidationError as error:
        raise to_user_error(error, where) from None
    if wanted != shared[key]:
        raise UserError(
            f"{where}: {key} {show(wanted)} is not the program's {show(shared[key])}; one program trains subjects of "
            "one base model, resolution, LoRA and batch: what may differ is "
            f"{', '.join(ManifestEntry.model_fields)}."
        )


def suggest_key(key: str, shared: Mapping[str, Any]) -> str:
    """Returns what an unknown key may mean, as the rest of a message."""
    near = get_close_matches(key.replace("-", "_").lower(), ManifestEntry.model_fields, n=1, cutoff=0.7)
    if near:
        return f"perhaps you meant {near[0]}."
    known = [*ManifestEntry.model_fields, *(other for other in shared if other not in ENTRY_KEYS)]
    hint = as_keys(suggest(key, known, TRAINERS), [*shared])
    hint = re.sub(r"[a-z_]+\.[a-z_]+", lambda match: ENTRY_KEYS.get(match[0], match[0]), hint)
    return hint or f"an entry has {', '.join(ManifestEntry.model_fields)}."


def show(value: Any) -> str:
    """Returns a value as messages show it."""
    return short_repr(str(value) if isinstance(value, Path) else value)
