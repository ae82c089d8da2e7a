"""Prompts to what the denoiser is conditioned on, by a language model: Z-Image and FLUX.2 klein.

A prompt stands in the model's chat template, and hidden states of its tokens are the conditions (diffusers
`pipeline_z_image.py`, `_encode_prompt`, and `pipeline_flux2_klein.py`, `_get_qwen3_prompt_embeds`). The model is run
once and never trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxbooth.base.chat_template import ChatTemplate
from jaxbooth.base.chat_tokenizer import ChatTokenizer, read_chat_tokenizer
from jaxbooth.base.text_encoder import PromptEncoder, TextEmbeddings, TextEncoder, TokenIds
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import LoraSpec
from jaxbooth.models.config import read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.qwen3 import Qwen3Model
from jaxbooth.models.qwen3_config import Qwen3Config
from jaxbooth.params import AnyArray, Params, abstract_module
from jaxbooth.storage.text import read_json
from jaxbooth.weights.family import ChatEncoderSpec

PADDING = -1  # among token ids; the text encoder is given the tokenizer's own padding in its place
BLOCK = 32  # tokens; captions are padded to a multiple, as Z-Image's transformer takes them
PLANNED_LENGTH = 64  # tokens of a prompt where none is known: about 40 words


@dataclass(frozen=True)
class ChatTextEncoder(PromptEncoder):
    """A language model and how it is used.

    Attributes:
        encoders: the one.
        dtype: of the embeddings: that which the model computes in, to which the denoiser would round them.
    """

    runs_once: ClassVar[bool] = True
    encoders: tuple[TextEncoder[ChatTokenizer, Qwen3Config], ...]
    spec: ChatEncoderSpec
    dtype: Any

    @property
    def width(self) -> int:
        """Width of the prompt embeddings: that of all hidden states side by side."""
        return len(self.spec.hidden_states) * self.encoders[0].config.hidden_size

    @property
    def attention_heads(self) -> set[int]:
        """Head counts of queries, and of keys and values."""
        config = self.encoders[0].config
        return {config.num_attention_heads, config.key_value_heads}

    @property
    def max_tokens(self) -> int:
        """Tokens that are read of a prompt, the template's included."""
        return self.spec.max_length

    def tokenize(self, prompts: Sequence[str]) -> TokenIds:
        """Returns the token ids of prompts, padded with -1 and truncated."""
        [encoder] = self.encoders
        rows = [encoder.tokenizer.prompt_ids(prompt) for prompt in prompts]
        length = self.padded_length(max(map(len, rows)))
        ids = np.full((len(rows), 1, length), PADDING, np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[0, : len(tokens)] = tokens
        return {encoder.name: ids}

    def padded_length(self, tokens: int) -> int:
        """Returns the length to which prompts are padded of which the longest has so many tokens."""
        return self.spec.max_length if self.spec.pads_to_max_length else -(-tokens // BLOCK) * BLOCK

    def abstract_ids(self, prompts: int) -> TokenIds:
        """Describes the token ids of prompts of PLANNED_LENGTH tokens."""
        shape = (prompts, 1, self.padded_length(PLANNED_LENGTH))
        ids: Any = {encoder.name: jax.ShapeDtypeStruct(shape, jnp.int32) for encoder in self.encoders}
        return ids

    def truncated_text(self, prompt: str) -> str:
        """Returns the end of a prompt that is not read, or an empty string."""
        return self.encoders[0].tokenizer.truncated_text(prompt)

    def encode(self, params: Mapping[str, Params], ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Runs the language model as far as it is needed. Pure, for use under `jax.jit`.

        Args:
            params: text encoder -> parameters.
            ids: text encoder -> (b, 1, length), -1 where a prompt is padded.

        Returns:
            Prompt embeddings (b, length, width). Where the family pads to `max_length`, those of padding are what the
            model makes of its padding token, which sees the prompt; else they are 0, and there are lengths.
        """
        [encoder] = self.encoders
        tokens = jnp.asarray(ids[encoder.name])[:, 0]
        is_token = tokens != PADDING
        lengths = jnp.sum(is_token, axis=1, dtype=jnp.int32)
        model = encoder.module.bind(params[encoder.name])
        input_ids = jnp.where(is_token, tokens, encoder.tokenizer.pad_token_id)
        states = model(input_ids, lengths, self.spec.hidden_states)
        embeds = jnp.concatenate([state.astype(self.dtype) for state in states], axis=-1)
        if self.spec.pads_to_max_length:
            return TextEmbeddings(embeds)
        return TextEmbeddings(jnp.where(is_token[..., None], embeds, 0), lengths=lengths)

    def add_placeholder_tokens(self, texts: Sequence[str], vectors: int) -> "ChatTextEncoder":
        """Refuses placeholder tokens, whose embeddings would have to be trained through the language model.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"--text.placeholder-tokens {' '.join(texts)}: this family's text encoder is a language model that is run "
            "once and never trained, so no token can be learned; leave the flag out and name the subject by a rare "
            "word."
        )

    def with_lora(self, lora: LoraSpec) -> "ChatTextEncoder":
        """Returns itself: the language model takes no adapters."""
        return self


def read_chat_text_encoder(
    folder: Path, spec: ChatEncoderSpec, dtype: Any, with_tokenizer: bool = True
) -> ChatTextEncoder:
    """Reads the configuration of a language model and its tokenizer.

    Args:
        folder: of the diffusers layout.
        dtype: that it computes in.
        with_tokenizer: without, nothing can be tokenized, and no tokenizer need be there.

    Raises:
        UserError: the files are missing, damaged or of another model.
    """
    file = folder / spec.component / "config.json"
    config = read_config(Qwen3Config, read_json(file), str(file))
    last = max(spec.hidden_states)
    if last > config.num_hidden_layers:
        raise UserError(
            f"{file}: num_hidden_layers {config.num_hidden_layers} is too few; this family uses the output of layer "
            f"{last}."
        )
    if with_tokenizer:
        tokenizer = read_chat_tokenizer(
            folder / spec.tokenizer, spec.max_length, config.vocab_size, spec.enable_thinking
        )
    else:
        tokenizer = ChatTokenizer(None, ChatTemplate("", ""), spec.max_length, pad_token_id=0)
    module = abstract_module(lambda rngs: Qwen3Model(config, Layers(rngs, dtype)))
    return ChatTextEncoder((TextEncoder(spec.component, tokenizer, module, config),), spec, dtype)
