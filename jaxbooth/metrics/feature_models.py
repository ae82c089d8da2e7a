"""Finds the files of a CLIP or a DINO by the name that a user gives: the embedded one, a local folder, or a Hub id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.assets import DEMO_CLIP, DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.metrics.preprocess import FILES
from jaxbooth.models.config import architectures
from jaxbooth.storage.paths import ascii_repr, local_path
from jaxbooth.storage.text import read_json
from jaxbooth.weights.fingerprint import update_with_weights
from jaxbooth.weights.hub import ReadFile, fetch
from jaxbooth.weights.hub_files import component_weights, list_contents
from jaxbooth.weights.prepare import cached_folder, file_names, link_component
from jaxbooth.weights.source import Source
from jaxbooth.weights.weight_sets import choose_weights

CONFIG = "config.json"
SMALL_FILES = re.compile(
    r"(config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|merges\.txt"
)


class SupportedModel(NamedTuple):
    """CLIP or DINO: how its folders are recognised.

    Attributes:
        name, flag: as in messages.
        classes: `model_type` of a `config.json` -> transformers' class for its weights.
        example: a Hub id.
        embedded: the folder that "demo" means.
    """

    name: str
    flag: str
    classes: Mapping[str, str]
    example: str
    embedded: Path | None = None


CLIP = SupportedModel("CLIP", "--clip", {"clip": "CLIPModel"}, "openai/clip-vit-base-patch32", DEMO_CLIP)
DINO = SupportedModel("DINO", "--dino", {"vit": "ViTModel", "dinov2": "Dinov2Model"}, "facebook/dino-vits16")


@dataclass(frozen=True)
class FeatureModelFiles:
    """Where the files of a feature model lie.

    Attributes:
        folder: of its configurations.
        weights: of its safetensors, which is another folder if they were converted from pickles.
        tokenizer: of a CLIP's tokenizer.
        config: the content of `config.json`.
    """

    folder: Path
    weights: Path
    tokenizer: Path
    config: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identifies the model by its configurations, and by the sizes and both ends of its weight files."""
        files = [self.folder / name for name in (CONFIG, *FILES)]
        digest = sha256(b"".join(file.read_bytes() for file in files if file.exists()))
        update_with_weights(digest, self.weights)
        return digest.hexdigest()[:16]


def find_files(supported: SupportedModel, source: Source) -> FeatureModelFiles:
    """Returns a feature model's files, fetched if they are on the Hub.

    Raises:
        UserError: nothing of that name exists, it is another model, or it has no usable weights.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    folder = find_folder(supported, source)
    config = read_model_config(supported, folder, f"{supported.flag} {source.name}")
    tokenizer = DEMO_MODEL / "tokenizer" if folder == supported.embedded else folder
    return FeatureModelFiles(folder, find_weights(supported, folder, source.allow_pickle), tokenizer, config)


def find_folder(supported: SupportedModel, source: Source) -> Path:
    """Returns the local folder that `source` means, fetched if it is on the Hub.

    Raises:
        UserError: nothing of that name exists.
        RunFailure: the Hub could not be reached.
    """
    name, label = source.name, f"{supported.flag} {source.name}"
    if name == "demo" and supported.embedded is None:
        raise UserError(
            f"{label}: no {supported.name} is embedded; name a folder or a Hub id, such as {supported.example}."
        )
    path = supported.embedded if name == "demo" and supported.embedded else local_path(name)
    if path.is_dir():
        if source.revision:
            raise UserError(f"revision {source.revision} does not apply to {label}, which is not on the Hub.")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or not re.fullmatch(r"[^/]+/[^/]+", name):
        raise UserError(f"{label}: no such folder, and not a Hub id, such as {supported.example}.")
    title = f"{supported.name} {name}"

    def choose(files: list[str], read: ReadFile) -> list[str]:
        if CONFIG not in files:
            raise UserError(f"{label} has no {CONFIG}, so it is no {supported.name}; it holds {list_contents(files)}.")
        check_model_type(supported, read_json(read(CONFIG)), label)
        small_files = [file for file in files if SMALL_FILES.fullmatch(file)]
        return sorted([*small_files, *component_weights("", files, None, source.allow_pickle, title)])

    return fetch(name, source.revision, source.offline, title, choose)


def read_model_config(supported: SupportedModel, folder: Path, label: str) -> dict[str, Any]:
    """Reads a folder's `config.json`.

    Raises:
        UserError: there is none, or it is another model's.
    """
    if not (folder / CONFIG).exists():
        holds = "a diffusers pipeline" if (folder / "model_index.json").exists() else f"no {CONFIG}"
        raise UserError(
            f"{label}: {folder} holds {holds}, and no {supported.name}; name one, such as {supported.example}."
        )
    config = read_json(folder / CONFIG)
    check_model_type(supported, config, label)
    return config


def check_model_type(supported: SupportedModel, config: Mapping[str, Any], label: str) -> None:
    """Refuses a model of another type.

    Raises:
        UserError: the message says label it is.
    """
    model_type = config.get("model_type")
    expected = supported.classes.get(str(model_type))
    listed = architectures(config, f"{label}: {CONFIG}")
    class_name = next(iter(listed), config.get("_class_name") or expected)
    if class_name is None or class_name != expected:
        held = f"{ascii_repr(class_name or 'a model')} (model_type {ascii_repr(model_type)})".replace("'", "")
        raise UserError(
            f"{label} holds {held}, not {' or '.join(supported.classes.values())}; {supported.flag} takes a "
            f"{supported.name}, such as {supported.example}."
        )


def find_weights(supported: SupportedModel, folder: Path, allow_pickle: bool) -> Path:
    """Returns the folder of a model's safetensors: its own, or one converted from its pickles.

    Raises:
        UserError: there are no weights, or pickles alone and they were not asked for.
        RunFailure: the cache cannot be written.
    """
    files = choose_weights(file_names(folder), None, True, str(folder))
    if not files:
        raise UserError(f"{supported.flag}: {folder} holds no weights (model.safetensors); fetch the model again.")
    if not any(".bin" in name for name in files):
        return folder
    if not allow_pickle:
        raise UserError(
            f"{supported.flag}: {folder / files[0]} is a pickle, which can run code when it is opened, and there are "
            "no safetensors beside it; pass --allow-pickle if you trust where it comes from."
        )
    return cached_folder([folder], {"feature_model": supported.name}, partial(link_component, folder, files))
