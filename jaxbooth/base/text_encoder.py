"""The text side: prompts to token ids, token ids to what the UNet is conditioned on.

SD 1.x and 2.x read the last hidden state of one CLIP tower, after its final LayerNorm. SDXL reads the penultimate
hidden states of two towers side by side, without it, and the second tower's pooled feature (diffusers
`pipeline_stable_diffusion.py` and `pipeline_stable_diffusion_xl.py`, `encode_prompt`).
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.console.messages import pluralize, warn
from jaxbooth.errors import UserError
from jaxbooth.models.clip import LEGACY_EOS
from jaxbooth.models.config import CLIPTextConfig
from jaxbooth.params import AnyArray, ModuleDef, Params
from jaxbooth.sharding import gather_param, param_sharding
from jaxbooth.transfer import to_host
from jaxbooth.weights.architectures import Conditioning

PLACEHOLDER_EMBEDDING = (
    "placeholder_tokens.embedding"  # parameter name of learned embeddings (tokens, d), in a tower's parameters
)
MAX_SHOWN = 200  # characters of a prompt in a message
TOKEN_EMBEDDING = "embeddings.token_embedding.embedding"

TokenIds = dict[str, AnyArray]  # tower -> (prompts, chunks, length) int32


class TextEmbeddings(NamedTuple):
    """What the UNet sees of prompts.

    Attributes:
        prompt_embeds: (b, s, d).
        pooled: (b, p) of SDXL's second tower, else None.
    """

    prompt_embeds: Array
    pooled_prompt_embeds: Array | None = None


def select_prompts(text: TextEmbeddings, indices: Array) -> TextEmbeddings:
    """Returns the embeddings of the prompts that have these indices; prompts may occur several times."""
    return jax.tree.map(lambda column: column[indices], text)


class PlaceholderToken(NamedTuple):
    """A word to learn, such as `<sks>`, and the vocabulary entries that spell it (one for each vector)."""

    text: str
    entries: tuple[str, ...]


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder with its tokenizer.

    Attributes:
        name: component, `text_encoder` or `text_encoder_2`.
        vocabulary_size: entries of the tokenizer before any were added.
    """

    name: str
    tokenizer: Any
    module: ModuleDef
    config: CLIPTextConfig
    vocabulary_size: int

    @property
    def max_length(self) -> int:
        """Tokens that the tower takes, the two special ones included."""
        return self.tokenizer.model_max_length


@dataclass(frozen=True)
class TextEncoders:
    """All towers of a model and how they are read.

    Attributes:
        conditioning: which hidden states are read, and whether the last tower's pooled feature is.
        clip_skip: layers left out at the end.
        max_token_chunks: parts of 75 tokens in a prompt.
        force_zeros_for_empty_prompt: an empty prompt is all zeros, as in SDXL: a negative prompt that is not
            given (diffusers' None) and a dropped caption, which are both "" here.
        placeholder_tokens: words added to every tower's vocabulary.
    """

    encoders: tuple[TextEncoder, ...]
    conditioning: Conditioning
    clip_skip: int = 0
    max_token_chunks: int = 1
    force_zeros_for_empty_prompt: bool = False
    placeholder_tokens: tuple[PlaceholderToken, ...] = ()

    @property
    def width(self) -> int:
        """Width of the context."""
        return sum(tower.config.hidden_size for tower in self.encoders)

    @property
    def eos_token_id_to_set(self) -> int | None:
        """The end token's id, where transformers would read the pooled text at a new token, else None.

        Configurations that name 2 make it read at the highest id, which is the end token's until tokens are added.
        """
        tower = self.encoders[-1]
        misread = self.conditioning.has_pooled and self.placeholder_tokens and tower.config.eos_token_id == LEGACY_EOS
        return tower.tokenizer.eos_token_id if misread else None

    def spellings(self, tower: TextEncoder) -> dict[int, list[int]]:
        """Returns the tokenizer's id of each placeholder token -> the ids of all its entries."""
        spelled = [tower.tokenizer.convert_tokens_to_ids(list(token.entries)) for token in self.placeholder_tokens]
        return {ids[0]: ids for ids in spelled}

    def token_ids(self, tower: TextEncoder, prompt: str) -> list[int]:
        """Returns the prompt's token ids without special ones; ids of learned tokens follow the embedding table."""
        spellings, shift = self.spellings(tower), tower.config.vocab_size - tower.vocabulary_size
        ids = tower.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        spelled = [part for id in ids for part in spellings.get(id, [id])]
        return [id + shift if id >= tower.vocabulary_size else id for id in spelled]

    def tokenize(self, prompts: Sequence[str]) -> TokenIds:
        """Returns padded and truncated token ids; a chunk without words is an empty prompt."""
        return {tower.name: np.stack([self.chunk_ids(tower, prompt) for prompt in prompts]) for tower in self.encoders}

    def chunk_ids(self, tower: TextEncoder, prompt: str) -> np.ndarray:
        """Returns (chunks, length) int32 token ids of one prompt, each chunk between its own special tokens."""
        ids, size, tokenizer = self.token_ids(tower, prompt), tower.max_length - 2, tower.tokenizer
        parts = [ids[start : start + size] for start in range(0, size * self.max_token_chunks, size)]
        rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
        padded = [row + [tokenizer.pad_token_id] * (tower.max_length - len(row)) for row in rows]
        return np.asarray(padded, np.int32)

    def truncated_text(self, prompt: str) -> str:
        """Returns the end of a prompt that does not fit, or an empty string."""
        tower = self.encoders[0]
        read = tower.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spellings, room = self.spellings(tower), self.max_token_chunks * (tower.max_length - 2)
        ends = np.cumsum([len(spellings.get(id, [id])) for id in read["input_ids"]])
        lost = [start for end, (start, _) in zip(ends, read["offset_mapping"], strict=True) if end > room]
        return prompt[lost[0] :] if lost else ""

    def encode(self, params: Mapping[str, Params], ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Runs the towers. Pure, for use under `jax.jit`.

        Features are float32, whatever the towers compute in: all rows and all layers add to their gradients.

        Args:
            params: tower -> parameters, learned embeddings included.
            ids: tower -> (b, chunks, length).

        Returns:
            Context (b, chunks * length, width); chunks are encoded apart and joined.
        """
        contexts, pooled = [], None
        for tower in self.encoders:
            tokens = jnp.asarray(ids[tower.name])
            rows, chunks, length = tokens.shape
            flat = tokens.reshape(rows * chunks, length)
            model = tower.module.bind(params[tower.name])
            states = model(flat, placeholder_embeddings(params[tower.name]))
            state = states[-1 - self.conditioning.skipped_layers - self.clip_skip]
            context = model.final_layer_norm(state) if self.conditioning.has_final_norm else state
            contexts.append(context.reshape(rows, chunks * length, -1))
            if self.conditioning.has_pooled and tower is self.encoders[-1]:
                pooled = model.pooled(states[-1].reshape(rows, chunks, length, -1)[:, 0], tokens[:, 0])
        text = TextEmbeddings(jnp.concatenate(contexts, axis=-1), pooled)
        return self.zero_empty_prompts(text, ids) if self.force_zeros_for_empty_prompt else text

    def zero_empty_prompts(self, text: TextEmbeddings, ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Blanks the rows of prompts without a word."""
        tower = self.encoders[0]
        has_words = jnp.asarray(ids[tower.name])[:, 0, 1] != tower.tokenizer.eos_token_id
        pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds * has_words[:, None]
        return TextEmbeddings(text.prompt_embeds * has_words[:, None, None], pooled)

    def add_placeholder_tokens(self, words: Sequence[str], vectors: int) -> "TextEncoders":
        """Returns the text side with words added to its vocabularies.

        Raises:
            UserError: a word is there already, or could be misread in a prompt.
        """
        new = tuple(PlaceholderToken(word, placeholder_entries(word, vectors)) for word in words)
        entries = [entry for token in new for entry in token.entries]
        check_placeholder_tokens(words)
        towers = []
        for tower in self.encoders:
            tokenizer = copy.deepcopy(tower.tokenizer)
            known = tokenizer.get_vocab()
            for word in entries:
                if word in known or f"{word}</w>" in known:
                    raise UserError(
                        f"--text.placeholder-tokens {word!r} is in the model's vocabulary already; choose another one, "
                        "such as '<sks>'."
                    )
            tokenizer.add_tokens(entries)
            towers.append(replace(tower, tokenizer=tokenizer))
        return replace(self, encoders=tuple(towers), placeholder_tokens=self.placeholder_tokens + new)


def placeholder_entries(word: str, vectors: int) -> tuple[str, ...]:
    """Returns the vocabulary entries of a word that is learned as several vectors: `<sks>`, `<sks>_1`, ..."""
    return (word, *(f"{word}_{index}" for index in range(1, vectors)))


def check_placeholder_tokens(words: Sequence[str]) -> None:
    """Refuses words that jaxbooth or another reader of the learned embeddings would misread in a prompt.

    CLIP's tokenizer lower-cases prompts, and diffusers' `maybe_convert_prompt` replaces each word as a string and takes
    `<word>_1` for the second vector of `<word>`.

    Raises:
        UserError: a word is empty, has spaces or capital letters, or is part of another one.
    """
    for word in words:
        if word.split() != [word]:
            raise UserError(f"--text.placeholder-tokens {word!r} must be one word without spaces, such as '<sks>'.")
        if word != word.lower():
            raise UserError(
                f"--text.placeholder-tokens {word!r}: CLIP reads lower case only; name it {word.lower()!r}."
            )
        if words.count(word) > 1:
            raise UserError(f"--text.placeholder-tokens names {word!r} twice.")
        if any(word != other and word in other for other in words):
            raise UserError(
                f"--text.placeholder-tokens {word!r} is part of another placeholder token; choose tokens that differ."
            )


def placeholder_embeddings(params: Params) -> Array | None:
    """Returns the (entries, d) embeddings of placeholder tokens, if there are any, as a layer uses them."""
    learned = params.get(PLACEHOLDER_EMBEDDING)
    return None if learned is None else gather_param(learned, param_sharding(PLACEHOLDER_EMBEDDING, learned.shape))


def init_placeholder_embeddings(
    side: TextEncoders, params: Mapping[str, Params], initializers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns tower -> (entries, d) float32: for each placeholder token, its initializer's token embeddings in turn.

    Args:
        initializers: a known word, or several, for each placeholder token.

    Raises:
        UserError: an initializer has no token, or is a placeholder token itself.
    """
    found = {}
    for tower in side.encoders:
        rows = []
        for token, initializer in zip(side.placeholder_tokens, initializers, strict=True):
            ids = side.token_ids(tower, initializer)
            if not ids:
                raise UserError(f"--text.initializer-token {initializer!r} has no token; name a word, such as 'dog'.")
            if max(ids) >= tower.config.vocab_size:
                raise UserError(
                    f"--text.initializer-token {initializer!r} is a placeholder token itself; "
                    "name a word, such as 'dog'."
                )
            known = to_host(
                jax.jit(lambda table, rows: table[rows])(params[tower.name][TOKEN_EMBEDDING], np.asarray(ids))
            )
            known = known.astype(np.float32)
            rows.append(np.resize(known, (len(token.entries), known.shape[1])))
        found[tower.name] = np.concatenate(rows)
    return found


def warn_about_truncation(side: TextEncoders, captions: Iterable[str]) -> None:
    """Warns once about all captions that are too long, and shows what of the first one is lost."""
    distinct = list(dict.fromkeys(captions))
    lost = [text for caption in distinct if (text := side.truncated_text(caption))]
    if lost:
        room = side.max_token_chunks * (side.encoders[0].max_length - 2) + 2
        beginning = shorten(lost[0])
        warn(f"{len(lost)} of {pluralize(len(distinct), 'prompt')} longer than {room} tokens; lost text: '{beginning}'")


def shorten(text: str) -> str:
    """Returns a text as messages show it: not too long."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."
