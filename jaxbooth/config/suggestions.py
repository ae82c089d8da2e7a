"""What a flag or key that jaxbooth does not have may mean: another trainer's name for something, or a misspelt one.

The other trainers' names are in `assets/peer_flags.yaml`, from which docs/from-diffusers.md is made, too.
"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from jaxbooth.assets import ASSETS
from jaxbooth.errors import UserError
from jaxbooth.storage.text import read_text

PEER_FLAGS = ASSETS / "peer_flags.yaml"
TRAINERS = ("diffusers", "kohya", "ai-toolkit", "OneTrainer", "SimpleTuner")
PIPELINES = ("pipelines",)
MARKDOWN_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
NONE = re.compile(r"^none(?:[:;,] |$)")
MAX_SHOWN = 60  # characters of what was typed


@cache
def peer_flags() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns peer -> section -> rows of `names`, shorter spellings `also`, and what does the same `here`."""
    return yaml.safe_load(read_text(PEER_FLAGS))


@cache
def peer_equivalents(peers: tuple[str, ...]) -> dict[str, str]:
    """Returns a peer's name for something -> what does the same here, as plain text; the first peer counts."""
    equivalents: dict[str, str] = {}
    for peer in peers:
        for row in [row for section in peer_flags()[peer].values() for row in section]:
            for name in (*row["names"], *row.get("also", ())):
                equivalents.setdefault(name, MARKDOWN_LINK.sub(r"\1", row["here"]).replace("`", ""))
    return equivalents


def normalize_key(name: str) -> str:
    """Returns a flag or key as it stands in a configuration file: `train.batch_size`."""
    return name.lstrip("-").split("=")[0].replace("-", "_").lower()


def suggest(name: str, known: Collection[str], peers: tuple[str, ...]) -> str:
    """Returns what an unknown key may mean, as the rest of a message; empty if nothing is similar.

    Args:
        known: all keys, with dots and underscores.
        peers: the trainers whose names count.
    """
    key = normalize_key(name)
    section, _, leaf = key.rpartition(".")
    if key in known:
        return f"perhaps you meant {key}."
    inside = [other for other in known if other.startswith(f"{key}.")]
    if inside:
        return f"{key} is a group of settings, such as {' and '.join(inside[:2])}."
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    equivalent = peer_equivalents(peers).get(leaf)
    if equivalent and not (len(same_leaf) == 1 and section):
        reason = NONE.sub("", equivalent)
        return f"here it is {equivalent}." if reason == equivalent else f"jaxbooth has none{reason and f': {reason}'}."
    if section:
        longer = [other for other in known if other.startswith(f"{section}.") and other.endswith(f"_{leaf}")]
        same_leaf = longer or get_close_matches(key, same_leaf, n=1, cutoff=0.8) or same_leaf
    alike = [other for other in known if bool(section) == ("." in other)]
    near = same_leaf or get_close_matches(key, alike, n=3, cutoff=0.7) or get_close_matches(key, known, n=3, cutoff=0.7)
    if near:
        return f"perhaps you meant {' or '.join(near)}."
    siblings = [other.rpartition(".")[2] for other in known if section and other.rpartition(".")[0] == section]
    return f"{section} has {', '.join(siblings)}." if siblings else ""


def as_flags(message: str, known: Collection[str]) -> str:
    """Writes the keys in a message as flags."""
    return re.sub(
        r"(?<![\w.-])[a-z][\w.]*\w",
        lambda match: "--" + match[0].replace("_", "-") if match[0] in known else match[0],
        message,
    )


def as_keys(message: str, known: Collection[str]) -> str:
    """Writes the flags in a message as keys of a configuration file."""
    return re.sub(
        r"--[a-z][\w.-]*\w",
        lambda match: normalize_key(match[0]) if normalize_key(match[0]) in known else match[0],
        message,
    )


def flag_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Returns the keys of a command's flags, with the negations of those that are on or off."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        flag_name = next((other.name for other in field.metadata if getattr(other, "name", None)), name)
        aliases = [alias for other in field.metadata for alias in getattr(other, "aliases", None) or ()]
        keys += [normalize_key(alias) for alias in aliases]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += flag_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys += [prefix + flag_name, *([f"{prefix}no_{flag_name}"] if field.annotation is bool else [])]
    return keys


def check_flags(model: type[BaseModel], argv: Sequence[str], command: str, peers: tuple[str, ...]) -> None:
    """Raises UserError for the first flag that a command does not have, with what may have been meant."""
    known = flag_keys(model)
    for typed in argv:
        if (
            not re.match(r"--[A-Za-z]", typed)
            or typed.startswith(("--tyro-", "--help"))
            or normalize_key(typed) in known
        ):
            continue
        positive = [key for key in known if not key.rpartition(".")[2].startswith("no_")]
        hint = suggest(typed, positive, peers)
        if not hint.startswith(("here", "jaxbooth")):  # those name flags already
            hint = as_flags(hint, positive)
        flag = typed.split("=")[0][:MAX_SHOWN]
        raise UserError(f"unknown flag {flag}; {hint or f'`{command} --help` lists all flags.'}")
