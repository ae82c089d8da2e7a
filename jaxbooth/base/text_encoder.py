"""Token ids to what the denoiser is conditioned on: a model's text encoders, and the embeddings that a run adds.

SD 1.x and 2.x use the last hidden state of one CLIP text encoder, after its final LayerNorm. SDXL uses the penultimate
hidden states of two text encoders side by side, without it, and the second one's pooled embedding (diffusers
`pipeline_stable_diffusion.py` and `pipeline_stable_diffusion_xl.py`, `encode_prompt`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.base.tokenizer import PlaceholderToken, Tokenizer, make_placeholder_tokens
from jaxbooth.console.messages import pluralize, warn
from jaxbooth.distributed.arrays import to_host
from jaxbooth.errors import UserError
from jaxbooth.models.clip import LEGACY_EOS
from jaxbooth.models.config import CLIPTextConfig
from jaxbooth.params import AnyArray, ModuleDef, Params
from jaxbooth.sharding import gather_param, param_sharding
from jaxbooth.weights.family import Conditioning

# Names among a text encoder's parameters: the embedding table, and the (entries, d) learned embeddings that follow it.
TOKEN_EMBEDDING = "embeddings.token_embedding.embedding"
PLACEHOLDER_EMBEDDING = "placeholder_tokens.embedding"
MAX_SHOWN = 200  # characters of a prompt in a message

TokenIds = dict[str, AnyArray]  # text encoder -> (prompts, chunks, length) int32


class TextEmbeddings(NamedTuple):
    """What the denoiser sees of prompts, float32.

    Attributes:
        prompt_embeds: (b, s, d).
        pooled_prompt_embeds: (b, p), for families that use them.
    """

    prompt_embeds: Array
    pooled_prompt_embeds: Array | None = None


def select_prompts(text: TextEmbeddings, indices: Array) -> TextEmbeddings:
    """Returns the embeddings of the prompts that have these indices; prompts may occur several times."""
    return jax.tree.map(lambda column: column[indices], text)


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder with its tokenizer.

    Attributes:
        name: its component, such as `text_encoder_2`.
    """

    name: str
    tokenizer: Tokenizer
    module: ModuleDef
    config: CLIPTextConfig


@dataclass(frozen=True)
class TextEncoders:
    """All text encoders of a model and how they are used.

    Attributes:
        conditioning: which hidden states are used, and whether the last encoder's pooled embedding is.
        clip_skip: further layers that are left out at the end.
        max_token_chunks: how many times 75 tokens of a prompt are read.
        zero_empty_prompts: the embeddings of an empty prompt are zeros. Empty is a dropped caption, and a negative
            prompt that is not given (diffusers' None).
    """

    encoders: tuple[TextEncoder, ...]
    conditioning: Conditioning
    clip_skip: int = 0
    max_token_chunks: int = 1
    zero_empty_prompts: bool = False

    @property
    def width(self) -> int:
        """Width of the prompt embeddings."""
        return sum(encoder.config.hidden_size for encoder in self.encoders)

    @property
    def skipped_layers(self) -> int:
        """Layers at the end of each encoder that the prompt embeddings leave out."""
        return self.conditioning.skipped_layers + self.clip_skip

    @property
    def placeholder_tokens(self) -> tuple[PlaceholderToken, ...]:
        """What was added to the vocabularies, which is the same for all encoders."""
        return self.encoders[0].tokenizer.placeholder_tokens

    @property
    def eos_token_id_to_set(self) -> int | None:
        """The end token's id, where transformers would pool at a placeholder token instead, else None.

        Configurations that name 2 make it pool at the highest id, which is the end token's until tokens are added.
        """
        last = self.encoders[-1]
        pools_at_highest = self.conditioning.has_pooled and last.config.eos_token_id == LEGACY_EOS
        return last.tokenizer.clip.eos_token_id if pools_at_highest and self.placeholder_tokens else None

    def tokenize(self, prompts: Sequence[str]) -> TokenIds:
        """Returns the token ids of prompts for each encoder, padded and truncated."""
        return {
            encoder.name: np.stack([encoder.tokenizer.chunk_ids(prompt, self.max_token_chunks) for prompt in prompts])
            for encoder in self.encoders
        }

    def truncated_text(self, prompt: str) -> str:
        """Returns the end of a prompt that is not read, or an empty string."""
        return self.encoders[0].tokenizer.truncated_text(prompt, self.max_token_chunks)

    def encode(self, params: Mapping[str, Params], ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Runs the text encoders. Pure, for use under `jax.jit`.

        Embeddings are float32, whatever the encoders compute in: all rows and all layers add to their gradients.

        Args:
            params: text encoder -> parameters, learned embeddings included.
            ids: text encoder -> (b, chunks, length).

        Returns:
            Prompt embeddings (b, chunks * length, width): chunks are encoded apart and joined.
        """
        embeds, pooled = [], None
        for encoder in self.encoders:
            tokens = jnp.asarray(ids[encoder.name])
            prompts, chunks, length = tokens.shape
            model = encoder.module.bind(params[encoder.name])
            states = model(tokens.reshape(prompts * chunks, length), placeholder_embeddings(params[encoder.name]))
            state = states[-1 - self.skipped_layers]
            if self.conditioning.has_final_norm:
                state = model.final_layer_norm(state)
            embeds.append(state.reshape(prompts, chunks * length, -1))
            if self.conditioning.has_pooled and encoder is self.encoders[-1]:
                pooled = model.pooled(states[-1].reshape(prompts, chunks, length, -1)[:, 0], tokens[:, 0])
        text = TextEmbeddings(jnp.concatenate(embeds, axis=-1), pooled)
        return self.without_empty_prompts(text, ids) if self.zero_empty_prompts else text

    def without_empty_prompts(self, text: TextEmbeddings, ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Returns the embeddings with zeros for prompts of no tokens."""
        first = self.encoders[0]
        has_tokens = jnp.asarray(ids[first.name])[:, 0, 1] != first.tokenizer.clip.eos_token_id
        pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds * has_tokens[:, None]
        return TextEmbeddings(text.prompt_embeds * has_tokens[:, None, None], pooled)

    def add_placeholder_tokens(self, texts: Sequence[str], vectors: int) -> "TextEncoders":
        """Returns the text encoders with tokens added to their vocabularies.

        Args:
            vectors: embeddings that each token gets.

        Raises:
            UserError: a token is in a vocabulary already, or could be misread in a prompt.
        """
        tokens = make_placeholder_tokens(texts, vectors)
        encoders = tuple(
            replace(encoder, tokenizer=encoder.tokenizer.add_placeholder_tokens(tokens)) for encoder in self.encoders
        )
        return replace(self, encoders=encoders)


def placeholder_embeddings(params: Params) -> Array | None:
    """Returns the (entries, d) embeddings of placeholder tokens, if there are any, as a layer uses them."""
    learned = params.get(PLACEHOLDER_EMBEDDING)
    return None if learned is None else gather_param(learned, param_sharding(PLACEHOLDER_EMBEDDING, learned.shape))


def init_placeholder_embeddings(
    text: TextEncoders, params: Mapping[str, Params], initializers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns text encoder -> (entries, d) float32: for each placeholder token, its initializer's embeddings in turn.

    Args:
        initializers: a word of the vocabulary, or several, for each placeholder token.

    Raises:
        UserError: an initializer has no token, or is a placeholder token itself.
    """
    embeddings = {}
    for encoder in text.encoders:
        rows = []
        for token, initializer in zip(text.placeholder_tokens, initializers, strict=True):
            ids = encoder.tokenizer.token_ids(initializer)
            if not ids:
                raise UserError(f"--text.initializer-token {initializer!r} has no token; name a word, such as 'dog'.")
            if max(ids) >= encoder.config.vocab_size:
                raise UserError(
                    f"--text.initializer-token {initializer!r} is a placeholder token itself; "
                    "name a word, such as 'dog'."
                )
            table = params[encoder.name][TOKEN_EMBEDDING]
            known = to_host(jax.jit(lambda table, rows: table[rows])(table, np.asarray(ids))).astype(np.float32)
            rows.append(np.resize(known, (len(token.entries), known.shape[1])))
        embeddings[encoder.name] = np.concatenate(rows)
    return embeddings


def warn_about_truncation(text: TextEncoders, captions: Iterable[str]) -> None:
    """Warns once about all captions that are too long, and shows what is lost of the first one."""
    distinct = list(dict.fromkeys(captions))
    lost = [end for caption in distinct if (end := text.truncated_text(caption))]
    if lost:
        end = lost[0] if len(lost[0]) <= MAX_SHOWN else lost[0][: MAX_SHOWN - 4] + " ..."
        room = text.max_token_chunks * (text.encoders[0].tokenizer.max_length - 2) + 2
        warn(f"{len(lost)} of {pluralize(len(distinct), 'prompt')} longer than {room} tokens; lost text: '{end}'")
