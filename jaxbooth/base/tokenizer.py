"""Prompts to token ids, and the placeholder tokens that a run adds to a vocabulary."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.errors import UserError

# Ids follow the order in which byte pairs were merged, the frequent ones first; this is 0.6 of CLIP's 49,408.
COMMON_IDS = 29_645


class PlaceholderToken(NamedTuple):
    """A token to learn, such as `<sks>`.

    Attributes:
        entries: the vocabulary entries that stand for it, one for each vector: `<sks>`, `<sks>_1`, ...
    """

    text: str
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer and the placeholder tokens that were added to it.

    Attributes:
        clip: transformers' `CLIPTokenizer`.
        vocabulary_size: its entries before any were added.
        embedding_rows: rows of the text encoder's embedding table, at least as many.
    """

    clip: Any
    vocabulary_size: int
    embedding_rows: int
    placeholder_tokens: tuple[PlaceholderToken, ...] = ()

    @property
    def max_length(self) -> int:
        """Tokens in a chunk, the start and the end token included."""
        return self.clip.model_max_length

    @property
    def common_ids(self) -> int:
        """Ids below which a word is a common one."""
        return COMMON_IDS

    @property
    def entry_ids(self) -> dict[int, list[int]]:
        """The vocabulary's id of each placeholder token -> the ids of all its entries."""
        ids = [self.clip.convert_tokens_to_ids(list(token.entries)) for token in self.placeholder_tokens]
        return {entries[0]: entries for entries in ids}

    def vocabulary_ids(self, prompt: str) -> list[int]:
        """Returns the ids in the vocabulary, without start and end; a placeholder token is its first entry."""
        return self.clip(prompt, add_special_tokens=False, verbose=False)["input_ids"]

    def token_ids(self, prompt: str) -> list[int]:
        """Returns the rows of the embedding table, without start and end; learned embeddings follow the table."""
        entry_ids = self.entry_ids
        expanded = [entry for id in self.vocabulary_ids(prompt) for entry in entry_ids.get(id, [id])]
        shift = self.embedding_rows - self.vocabulary_size
        return [id + shift if id >= self.vocabulary_size else id for id in expanded]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token."""
        return [token.removesuffix("</w>") for token in self.clip.convert_ids_to_tokens(list(ids))]

    def chunk_ids(self, prompt: str, chunks: int) -> np.ndarray:
        """Returns (chunks, max_length) int32 token ids: each chunk between its own start and end, padded.

        What does not fit is left out; a chunk without text is an empty prompt.
        """
        ids = self.token_ids(prompt)
        room = self.max_length - 2
        rows = []
        for start in range(0, chunks * room, room):
            row = [self.clip.bos_token_id, *ids[start : start + room], self.clip.eos_token_id]
            rows.append(row + [self.clip.pad_token_id] * (self.max_length - len(row)))
        return np.asarray(rows, np.int32)

    def truncated_text(self, prompt: str, chunks: int) -> str:
        """Returns the end of a prompt that does not fit into the chunks, or an empty string."""
        encoded = self.clip(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        entry_ids = self.entry_ids
        counts = np.cumsum([len(entry_ids.get(id, [id])) for id in encoded["input_ids"]])
        room = chunks * (self.max_length - 2)
        for count, (start, _) in zip(counts, encoded["offset_mapping"], strict=True):
            if count > room:
                return prompt[start:]
        return ""

    def add_placeholder_tokens(self, tokens: Sequence[PlaceholderToken]) -> "Tokenizer":
        """Returns the tokenizer with further placeholder tokens.

        Raises:
            UserError: the vocabulary has one of them already.
        """
        clip = copy.deepcopy(self.clip)
        vocabulary = clip.get_vocab()
        entries = [entry for token in tokens for entry in token.entries]
        for entry in entries:
            if entry in vocabulary or f"{entry}</w>" in vocabulary:
                raise UserError(
                    f"--text.placeholder-tokens {entry!r} is in the model's vocabulary already; choose another one, "
                    "such as '<sks>'."
                )
        clip.add_tokens(entries)
        return replace(self, clip=clip, placeholder_tokens=(*self.placeholder_tokens, *tokens))


def make_placeholder_tokens(texts: Sequence[str], vectors: int) -> tuple[PlaceholderToken, ...]:
    """Returns placeholder tokens of several vectors each, named as diffusers' `maybe_convert_prompt` expects.

    CLIP's tokenizer lower-cases prompts, and diffusers replaces each token as a string and takes `<token>_1` for the
    second vector of `<token>`.

    Raises:
        UserError: a token is empty, has spaces or capital letters, is named twice, or is part of another one.
    """
    for text in texts:
        if text.split() != [text]:
            raise UserError(f"--text.placeholder-tokens {text!r} must be one word without spaces, such as '<sks>'.")
        if text != text.lower():
            raise UserError(
                f"--text.placeholder-tokens {text!r}: CLIP reads lower case only; name it {text.lower()!r}."
            )
        if texts.count(text) > 1:
            raise UserError(f"--text.placeholder-tokens names {text!r} twice.")
        if any(text != other and text in other for other in texts):
            raise UserError(
                f"--text.placeholder-tokens {text!r} is part of another placeholder token; choose tokens that differ."
            )
    return tuple(
        PlaceholderToken(text, (text, *(f"{text}_{number}" for number in range(1, vectors)))) for text in texts
    )
