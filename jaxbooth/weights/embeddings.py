"""Placeholder tokens as files: what `load_textual_inversion` and the web UIs read, float32, one file for each word.

SD 1.x and 2.x have one tensor (vectors, d) under the word; SDXL has one for each text encoder, under the names that the
web UIs gave them. The word itself is in the file's metadata too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxbooth.errors import UserError
from jaxbooth.export.upload import embedding_files
from jaxbooth.storage.files import write_bytes
from jaxbooth.storage.paths import shown
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.values import finite, weight_dtype

SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
TOKEN_KEY = "jaxbooth.token"

TokenEmbeddings = dict[str, dict[str, np.ndarray]]  # word -> text encoder -> (vectors, d)


def write_embeddings(folder: Path, words: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes one file for each word into a folder."""
    files = embedding_files(list(words))
    for word, towers in words.items():
        names = SDXL_KEYS if len(towers) > 1 else dict.fromkeys(towers, word)
        tensors = {names[tower]: np.ascontiguousarray(rows) for tower, rows in towers.items()}
        write_bytes(folder / files[word], save(tensors, metadata={TOKEN_KEY: word}))


def read_embeddings(folder: Path) -> TokenEmbeddings:
    """Reads the words that `write_embeddings` left in a model folder, in the order of their files' names."""
    towers, words = {key: tower for tower, key in SDXL_KEYS.items()}, {}
    for path in sorted(folder.glob("learned_embeds*.safetensors")):
        with open_tensors(path) as file:
            word = (file.metadata() or {}).get(TOKEN_KEY)
            if word:
                words[word] = {towers.get(key, "text_encoder"): read_rows(path, file, key) for key in file.keys()}  # noqa: SIM118
    return words


def read_rows(path: Path, file: Any, name: str) -> np.ndarray:
    """Reads the vectors of a word for one text encoder, (vectors, d).

    Raises:
        UserError: the tensor is no matrix, or holds something else than finite floats.
    """
    weight_dtype(file.get_slice(name).get_dtype(), name, path)
    rows = file.get_tensor(name)
    if rows.ndim != 2:
        raise UserError(f"{path}: {shown(name)} has shape {rows.shape}; embeddings are one row for each vector.")
    return finite(rows, name, path)
