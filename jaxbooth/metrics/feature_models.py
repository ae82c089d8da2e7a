"""From what a user calls a CLIP or a DINO to its files: the embedded one, a local folder, or the Hub's."""

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
from jaxbooth.storage.paths import local_path, shown
from jaxbooth.storage.text import read_json
from jaxbooth.weights.fingerprint import update_with_weights
from jaxbooth.weights.hub import Read, fetch, listing, weights_in
from jaxbooth.weights.prepare import cached_folder, choose_weights, file_names, link_component

CONFIG = "config.json"
SMALL_FILES = re.compile(
    r"(config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|merges\.txt"
)


class ModelKind(NamedTuple):
    """What an extractor is made of.

    Attributes:
        name, flag: as in messages.
        models: `model_type` of a `config.json` -> class that its weights are of.
        example: a Hub id.
        embedded: the folder that "demo" means.
    """

    name: str
    flag: str
    models: Mapping[str, str]
    example: str
    embedded: Path | None = None


CLIP = ModelKind("CLIP", "--clip", {"clip": "CLIPModel"}, "openai/clip-vit-base-patch32", DEMO_CLIP)
DINO = ModelKind("DINO", "--dino", {"vit": "ViTModel", "dinov2": "Dinov2Model"}, "facebook/dino-vits16")


@dataclass(frozen=True)
class FeatureModelSource:
    """An extractor as it is looked for.

    Attributes:
        name: "demo", a folder in transformers' layout, or a Hub id ("owner/model").
        revision: branch, tag or commit of a Hub model.
        offline: never ask the Hub.
        allow_pickle: also read `.bin`, through PyTorch.
    """

    name: str
    revision: str | None = None
    offline: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class FeatureModelFiles:
    """Where an extractor's files lie.

    Attributes:
        folder: of its configurations.
        weights: of its safetensors, another folder where they had to be made from pickles.
        tokenizer: of a CLIP's tokenizer.
        config: the content of `config.json`.
    """

    folder: Path
    weights: Path
    tokenizer: Path
    config: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identifies the extractor by its configurations, and by the sizes and both ends of its weight files."""
        files = [self.folder / name for name in (CONFIG, *FILES)]
        digest = sha256(b"".join(file.read_bytes() for file in files if file.exists()))
        update_with_weights(digest, self.weights)
        return digest.hexdigest()[:16]


def find_files(kind: ModelKind, source: FeatureModelSource) -> FeatureModelFiles:
    """Returns an extractor's files, fetched if they are on the Hub.

    Raises:
        UserError: there is nothing of that name, it is another model, or it has no usable weights.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    folder = find_folder(kind, source)
    config = read_model_config(kind, folder, f"{kind.flag} {source.name}")
    tokenizer = DEMO_MODEL / "tokenizer" if folder == kind.embedded else folder
    return FeatureModelFiles(folder, find_weights(kind, folder, source.allow_pickle), tokenizer, config)


def find_folder(kind: ModelKind, source: FeatureModelSource) -> Path:
    """Returns the local folder that `source` means, fetched if it is on the Hub.

    Raises:
        UserError: there is nothing of that name.
        RunFailure: the Hub could not be reached.
    """
    name, what = source.name, f"{kind.flag} {source.name}"
    if name == "demo" and kind.embedded is None:
        raise UserError(f"{what}: no {kind.name} is embedded; name a folder or a Hub id, such as {kind.example}.")
    path = kind.embedded if name == "demo" and kind.embedded else local_path(name)
    if path.is_dir():
        if source.revision:
            raise UserError(f"revision {source.revision} does not apply to {what}, which is not on the Hub.")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or not re.fullmatch(r"[^/]+/[^/]+", name):
        raise UserError(f"{what}: no such folder, and not a Hub id, such as {kind.example}.")
    title = f"{kind.name} {name}"

    def choose(files: list[str], read: Read) -> list[str]:
        if CONFIG in files:
            check_model_type(kind, read_json(read(CONFIG)), what)
        else:
            raise UserError(f"{what} has no {CONFIG}, so it is no {kind.name}; it holds {listing(files)}.")
        small = [file for file in files if SMALL_FILES.fullmatch(file)]
        return sorted([*small, *weights_in("", files, None, source.allow_pickle, title)])

    return fetch(name, source.revision, source.offline, title, choose)


def read_model_config(kind: ModelKind, folder: Path, what: str) -> dict[str, Any]:
    """Reads a folder's `config.json`.

    Raises:
        UserError: there is none, or it is another model's.
    """
    if not (folder / CONFIG).exists():
        holds = "a diffusers pipeline" if (folder / "model_index.json").exists() else f"no {CONFIG}"
        raise UserError(f"{what}: {folder} holds {holds}, and no {kind.name}; name one, such as {kind.example}.")
    config = read_json(folder / CONFIG)
    check_model_type(kind, config, what)
    return config


def check_model_type(kind: ModelKind, config: Mapping[str, Any], what: str) -> None:
    """Refuses other models than those of `kind`.

    Raises:
        UserError: the message says what it is.
    """
    model = config.get("model_type")
    expected = kind.models.get(str(model))
    named = next(iter(architectures(config, f"{what}: {CONFIG}")), config.get("_class_name") or expected)
    if named is None or named != expected:
        holds = f"{shown(named or 'a model')} (model_type {shown(model)})".replace("'", "")
        raise UserError(
            f"{what} holds {holds}, not {' or '.join(kind.models.values())}; {kind.flag} takes a {kind.name}, such as "
            f"{kind.example}."
        )


def find_weights(kind: ModelKind, folder: Path, allow_pickle: bool) -> Path:
    """Returns the folder of a model's safetensors: its own, or one in the cache that is made from its pickles once.

    Raises:
        UserError: there are no weights, or pickles alone and they were not asked for.
        RunFailure: the cache cannot be written.
    """
    names = file_names(folder)
    files = choose_weights(names, None, True, str(folder))
    if not files:
        raise UserError(f"{kind.flag}: {folder} holds no weights (model.safetensors); fetch the model again.")
    if not any(".bin" in name for name in files):
        return folder
    if not allow_pickle:
        raise UserError(
            f"{kind.flag}: {folder / files[0]} is a pickle, which can run code when it is opened, and there are no "
            "safetensors beside it; pass --allow-pickle if you trust where it comes from."
        )
    return cached_folder([folder], {"extractor": kind.name}, partial(link_component, folder, files))
