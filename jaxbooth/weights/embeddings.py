"""Learned embeddings of placeholder tokens as files: what `load_textual_inversion` and the web UIs read, float32.

Each token has a file of its own, with one tensor (vectors, d) for each text encoder. A single text encoder's tensor has
the token's name; those of several have the names that the web UIs gave them (`clip_l` and `clip_g` of SDXL). The token
is in the file's metadata too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_bytes
from jaxbooth.storage.paths import ascii_repr, short_name
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.family import Family, TextEncoderSpec
from jaxbooth.weights.values import finite, weight_dtype

EMBEDDINGS_FILE = "learned_embeds.safetensors"  # the name that diffusers looks for
TOKEN_KEY = "jaxbooth.token"  # of the metadata

TokenEmbeddings = dict[str, dict[str, np.ndarray]]  # token -> text encoder -> (vectors, d)


def embedding_files(tokens: Sequence[str]) -> dict[str, str]:
    """Returns placeholder token -> name of its file: readers take one token from a file."""
    if len(tokens) == 1:
        return {tokens[0]: EMBEDDINGS_FILE}
    stems = [short_name("".join(filter(str.isalnum, token))) for token in tokens]
    distinct = [stem if stem and stems.count(stem) == 1 else f"{stem}{index}" for index, stem in enumerate(stems)]
    return {token: f"learned_embeds_{stem}.safetensors" for token, stem in zip(tokens, distinct, strict=True)}


def tensor_name(encoder: TextEncoderSpec, token: str) -> str:
    """Returns the name of a text encoder's tensor in a token's file."""
    return encoder.embedding_key or token


def write_embeddings(folder: Path, embeddings: Mapping[str, Mapping[str, np.ndarray]], family: Family) -> None:
    """Writes one file for each token into a folder.

    Args:
        embeddings: token -> text encoder -> (vectors, d).
    """
    files = embedding_files(list(embeddings))
    for token, rows in embeddings.items():
        tensors = {
            tensor_name(encoder, token): np.ascontiguousarray(rows[encoder.component])
            for encoder in family.text_encoders
        }
        write_bytes(folder / files[token], save(tensors, metadata={TOKEN_KEY: token}))


def read_embeddings(folder: Path) -> TokenEmbeddings:
    """Reads the embeddings that `write_embeddings` left in a model folder, in the order of their files' names."""
    files = [read_embedding_file(path) for path in sorted(folder.glob("learned_embeds*.safetensors"))]
    return {token: rows for token, rows in files if token}


def read_embedding_file(path: Path) -> tuple[str | None, dict[str, np.ndarray]]:
    """Returns the placeholder token of a file, None if it does not say, and text encoder -> its (vectors, d) rows.

    Raises:
        UserError: the file is damaged, or a tensor is no matrix of finite floats.
    """
    encoders = [encoder for family in FAMILIES.values() for encoder in family.text_encoders]
    components = {encoder.embedding_key: encoder.component for encoder in encoders}
    with open_tensors(path) as file:
        rows = {components.get(name, "text_encoder"): read_rows(path, file, name) for name in list(file.keys())}
        return (file.metadata() or {}).get(TOKEN_KEY), rows


def read_rows(path: Path, file: Any, name: str) -> np.ndarray:
    """Reads the vectors of a word for one text encoder, (vectors, d).

    Raises:
        UserError: the tensor is no matrix, or holds something else than finite floats.
    """
    weight_dtype(file.get_slice(name).get_dtype(), name, path)
    rows = file.get_tensor(name)
    if rows.ndim != 2:
        raise UserError(f"{path}: {ascii_repr(name)} has shape {rows.shape}; embeddings are one row for each vector.")
    return finite(rows, name, path)
