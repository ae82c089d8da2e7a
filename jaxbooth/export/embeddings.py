"""Learned embeddings of placeholder tokens: a file for each, which `load_textual_inversion` and the web UIs read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.errors import UserError
from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.weights.embeddings import (
    TokenEmbeddings,
    embedding_files,
    read_embedding_file,
    tensor_name,
    write_embeddings,
)
from jaxbooth.weights.family import Family


class EmbeddingsFormat(ExportFormat):
    """A textual inversion: the embeddings alone, in float32. Other formats have the same files beside their weights."""

    name = "embeddings"
    help = "the placeholder tokens"
    introduction = "A textual inversion for"

    def check(self, base: BaseModel) -> None:
        """Refuses a run that learned no token."""
        if not base.text.placeholder_tokens:
            raise UserError(
                "--format embeddings needs a run with --text.placeholder-tokens; this one learned no placeholder token."
            )

    def write(self, export: Export, folder: Path) -> None:
        """Writes a file for each token."""
        write_embeddings(folder, learned_rows(export), export.base.family)

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads the rows of each token for each text encoder."""
        files, learned = embedding_files(export.tokens), learned_rows(export)
        for token, file in files.items():
            name, rows = read_embedding_file(export.out / file)
            if name != token:
                raise UserError(f"{export.out / file} says that it holds {name}; it should be {token}.")
            for encoder in export.base.family.text_encoders:
                label = f"{file}: {tensor_name(encoder, token)}"
                yield ReadBack(label, rows.pop(encoder.component, None), learned[token][encoder.component])
            for component, surplus in rows.items():
                yield ReadBack(f"{file}: {component}", surplus, None)

    def load_in_torch(self, pipe: Any, export: Export) -> None:
        """Adds the embeddings to each text encoder; a file of several is taken apart, as diffusers asks for it."""
        import torch

        for token, file in embedding_files(export.tokens).items():
            if len(export.base.family.text_encoders) == 1:
                pipe.load_textual_inversion(export.out, weight_name=file, token=token)
                continue
            _, rows = read_embedding_file(export.out / file)
            for encoder in export.base.family.text_encoders:
                pipe.load_textual_inversion(
                    torch.from_numpy(rows[encoder.component]),
                    token=token,
                    text_encoder=getattr(pipe, encoder.component),
                    tokenizer=getattr(pipe, encoder.tokenizer),
                )

    def loading_code(self, repo: str, family: Family, tokens: Sequence[str], files: Sequence[str]) -> list[str]:
        """Returns the lines of Python that give the tokens to `pipe`."""
        file_of = embedding_files(tokens)
        if len(family.text_encoders) == 1:
            return [
                f"pipe.load_textual_inversion({repo!r}, weight_name={file!r}, token={token!r})"
                for token, file in file_of.items()
            ]
        lines = ["", "from huggingface_hub import hf_hub_download", "from safetensors.torch import load_file", ""]
        for token, file in file_of.items():
            lines += [f"vectors = load_file(hf_hub_download({repo!r}, {file!r}))"]
            for encoder in family.text_encoders:
                lines += [f"pipe.load_textual_inversion(vectors[{encoder.embedding_key!r}], token={token!r},"]
                lines += [f"    text_encoder=pipe.{encoder.component}, tokenizer=pipe.{encoder.tokenizer})"]
        return lines if file_of else []


def learned_rows(export: Export) -> TokenEmbeddings:
    """Returns placeholder token -> text encoder -> (vectors, d) float32."""
    ends = np.cumsum([len(token.entries) for token in export.base.text.placeholder_tokens])[:-1]
    rows = {
        component: np.split(np.asarray(jax.device_get(params[PLACEHOLDER_EMBEDDING]), np.float32), ends)
        for component, params in export.trained.items()
        if PLACEHOLDER_EMBEDDING in params
    }
    return {
        token: {component: tables[index] for component, tables in rows.items()}
        for index, token in enumerate(export.tokens)
    }
