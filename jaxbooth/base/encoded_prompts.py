"""Prompt embeddings that are made ahead, where the text encoder is a large one that is dropped before training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, encode_prompts, load_params
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds, select_prompts
from jaxbooth.distributed.arrays import put, to_host
from jaxbooth.params import Params
from jaxbooth.sharding import replicated

BATCH_SIZE = 8  # prompts that are encoded at once; a language model of 4 billion takes 500 MB for them


@dataclass(frozen=True)
class EncodedPrompts:
    """The embeddings of prompts.

    Attributes:
        index: prompt -> its row.
        text: one row for each prompt, replicated over the mesh, or on the host.
    """

    index: Mapping[str, int]
    text: TextEmbeddings

    def select(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Returns the embeddings of prompts that are among the encoded ones."""
        rows = np.array([self.index[prompt] for prompt in prompts], np.int32)
        return select_prompts(self.text, rows)

    def only(self, *prompts: str) -> "EncodedPrompts":
        """Returns those of some prompts, in the order in which they are named."""
        return EncodedPrompts({prompt: row for row, prompt in enumerate(prompts)}, self.select(prompts))

    def with_prompt(self, prompt: str, text: TextEmbeddings, mesh: Mesh) -> "EncodedPrompts":
        """Returns these and one more prompt, all padded to the length of the longest.

        Args:
            text: of the prompt alone, (1, s, d), equal on every process.
        """
        parts = [jax.tree.map(to_host, self.text), jax.tree.map(np.asarray, text)]
        length = max(part.prompt_embeds.shape[1] for part in parts)
        joined = jax.tree.map(lambda *columns: np.concatenate(columns), *(padded(part, length) for part in parts))
        return EncodedPrompts({**self.index, prompt: len(self.index)}, put(joined, replicated(mesh)))


def padded(text: TextEmbeddings, length: int) -> TextEmbeddings:
    """Returns embeddings on the host of another length, with those of padding as text encoders leave them: 0."""
    missing = length - text.prompt_embeds.shape[1]
    prompt_embeds: Any = np.pad(text.prompt_embeds, ((0, 0), (0, missing), (0, 0)))
    return text._replace(prompt_embeds=prompt_embeds)


def empty_embeddings(like: TextEmbeddings, length: int) -> TextEmbeddings:
    """Returns zeros on the host, of one prompt of a length, with the other dimensions and the dtypes of embeddings."""
    zeros = jax.tree.map(lambda column: np.zeros((1, *column.shape[1:]), column.dtype), like)
    return padded(zeros._replace(prompt_embeds=zeros.prompt_embeds[:, :0]), length)


def encode_batches(
    encode: Callable[[dict[str, Params], TokenIds], TextEmbeddings],
    params: dict[str, Params],
    ids: TokenIds,
    batch_size: int,
    on_host: bool = False,
) -> TextEmbeddings:
    """Encodes prompts in batches of one size, so that the memory for it does not grow with their number."""
    count = len(next(iter(ids.values())))
    batches = []
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = encode(params, {name: tokens[rows] for name, tokens in ids.items()})
        batches.append(jax.device_get(batch) if on_host else batch)
    concatenate = np.concatenate if on_host else jnp.concatenate
    return jax.tree.map(lambda *parts: concatenate(parts)[:count], *batches)


def encode_ahead(
    base: BaseModel, mesh: Mesh, *groups: Sequence[str], on_host: bool = False, batch_size: int = BATCH_SIZE
) -> list[EncodedPrompts]:
    """Loads the text encoder, encodes groups of distinct prompts and drops it.

    The prompts of a group are padded to the length of its longest.

    Args:
        on_host: where the embeddings stay, for prompts that are more than the devices hold.
        batch_size: prompts that are encoded at once.

    Raises:
        UserError: its weights are missing, damaged or of another shape.
    """
    params = load_params(base, mesh, components=base.text_encoder_names)
    program = jax.jit(lambda params, ids: encode_prompts(base, mesh, params, ids), out_shardings=replicated(mesh))

    def encode(prompts: Sequence[str]) -> EncodedPrompts:
        text = encode_batches(program, params, base.text.tokenize(prompts), batch_size, on_host)
        return EncodedPrompts({prompt: row for row, prompt in enumerate(prompts)}, text)

    return [encode(prompts) for prompts in groups]
