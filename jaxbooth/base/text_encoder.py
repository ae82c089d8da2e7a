"""Prompts to what the denoiser is conditioned on: what all text encoders offer, CLIP's, and embeddings that a run adds.

SD 1.x and 2.x use the last hidden state of one CLIP text encoder, after its final LayerNorm. SDXL uses the penultimate
hidden states of two text encoders side by side, without it, and the second one's pooled embedding (diffusers
`pipeline_stable_diffusion.py` and `pipeline_stable_diffusion_xl.py`, `encode_prompt`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.base.tokenizer import PlaceholderToken, Tokenizer, make_placeholder_tokens
from jaxbooth.console.messages import pluralize, warn
from jaxbooth.models.adapter_kinds import LoraSpec
from jaxbooth.models.clip import LEGACY_EOS
from jaxbooth.models.config import CLIPTextConfig
from jaxbooth.models.lora import with_adapters
from jaxbooth.params import AnyArray, ModuleDef, Params
from jaxbooth.sharding import gather_param, param_sharding
from jaxbooth.weights.family import Conditioning

# Names among a text encoder's parameters: the embedding table, and the (entries, d) learned embeddings that follow it.
TOKEN_EMBEDDING = "embeddings.token_embedding.embedding"
PLACEHOLDER_EMBEDDING = "placeholder_tokens.embedding"
MAX_SHOWN = 200  # characters of a prompt in a message

TokenIds = dict[str, AnyArray]  # text encoder -> (prompts, chunks, length) int32
TokenizerT = TypeVar("TokenizerT")
ConfigT = TypeVar("ConfigT")


class TextEmbeddings(NamedTuple):
    """What the denoiser sees of prompts.

    Attributes:
        prompt_embeds: (b, s, d); float32 where the text encoder may be trained.
        pooled_prompt_embeds: (b, p), for families that use them.
        lengths: (b,) int32, how many of the s tokens are no padding, for families whose denoiser is told.
    """

    prompt_embeds: Array
    pooled_prompt_embeds: Array | None = None
    lengths: Array | None = None


def select_prompts(text: TextEmbeddings, indices: AnyArray) -> TextEmbeddings:
    """Returns the embeddings of the prompts that have these indices; prompts may occur several times."""
    return jax.tree.map(lambda column: column[indices], text)


@dataclass(frozen=True)
class TextEncoder(Generic[TokenizerT, ConfigT]):
    """One text encoder with its tokenizer.

    Attributes:
        name: its component, such as `text_encoder_2`.
    """

    name: str
    tokenizer: TokenizerT
    module: ModuleDef
    config: ConfigT


@dataclass(frozen=True)
class PromptEncoder(ABC):
    """How a model's prompts become the conditions of its denoiser; a subclass for each kind of text encoder.

    Attributes:
        encoders: text encoders, in the order of their embeddings.
        clip_skip: further layers that CLIP leaves out at the end.
        max_token_chunks: how many times 75 tokens of a prompt are read by CLIP.
    """

    runs_once: ClassVar[bool] = False  # before the denoiser is loaded; then it is dropped, and never trained
    encoders: tuple[TextEncoder[Any, Any], ...]
    clip_skip: int = field(default=0, kw_only=True)
    max_token_chunks: int = field(default=1, kw_only=True)

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the prompt embeddings."""

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur in the text encoders."""
        return {encoder.config.num_attention_heads for encoder in self.encoders}

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Tokens that are read of a prompt, special ones included."""

    @property
    def placeholder_tokens(self) -> tuple[PlaceholderToken, ...]:
        """What was added to the vocabularies, which is the same for all encoders."""
        return self.encoders[0].tokenizer.placeholder_tokens

    @property
    def eos_token_id_to_set(self) -> int | None:
        """The end token's id, where transformers would pool at another token instead, else None."""
        return None

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> TokenIds:
        """Returns the token ids of prompts for each encoder, padded and truncated."""

    @abstractmethod
    def abstract_ids(self, prompts: int) -> TokenIds:
        """Describes the token ids of prompts."""

    @abstractmethod
    def truncated_text(self, prompt: str) -> str:
        """Returns the end of a prompt that is not read, or an empty string."""

    @abstractmethod
    def encode(self, params: Mapping[str, Params], ids: Mapping[str, AnyArray]) -> TextEmbeddings:
        """Runs the text encoders. Pure, for use under `jax.jit`."""

    def abstract_embeddings(self, prompts: int) -> TextEmbeddings:
        """Describes the embeddings of prompts."""
        params = {encoder.name: encoder.module.shapes for encoder in self.encoders}
        return jax.eval_shape(self.encode, params, self.abstract_ids(prompts))

    def unused_prefixes(self, encoder: TextEncoder[Any, Any]) -> tuple[str, ...]:
        """Returns how the names of an encoder's parameters begin that no embeddings depend on."""
        return ()

    @abstractmethod
    def add_placeholder_tokens(self, texts: Sequence[str], vectors: int) -> "PromptEncoder":
        """Returns the text encoders with tokens added to their vocabularies.

        Args:
            vectors: embeddings that each token gets.

        Raises:
            UserError: a token cannot be added.
        """

    @abstractmethod
    def with_lora(self, lora: LoraSpec) -> "PromptEncoder":
        """Returns the text encoders that also take adapters, where they can be trained."""


@dataclass(frozen=True)
class TextEncoders(PromptEncoder):
    """CLIP text encoders and how they are used.

    Attributes:
        conditioning: which hidden states are used, and whether the last encoder's pooled embedding is.
        zero_empty_prompts: the embeddings of an empty prompt are zeros. Empty is a dropped caption, and a negative
            prompt that is not given (diffusers' None).
    """

    encoders: tuple[TextEncoder[Tokenizer, CLIPTextConfig], ...]
    conditioning: Conditioning
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
    def max_tokens(self) -> int:
        """Tokens that are read of a prompt, of all chunks, with one start and one end."""
        return self.max_token_chunks * (self.encoders[0].tokenizer.max_length - 2) + 2

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

    def abstract_ids(self, prompts: int) -> TokenIds:
        """Describes the token ids of prompts."""
        ids: Any = {
            encoder.name: jax.ShapeDtypeStruct(
                (prompts, self.max_token_chunks, encoder.tokenizer.max_length), jnp.int32
            )
            for encoder in self.encoders
        }
        return ids

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

    def unused_prefixes(self, encoder: TextEncoder[Any, Any]) -> tuple[str, ...]:
        """Returns how the names of an encoder's parameters begin that no embeddings depend on.

        One is read up to the layer that the prompt embeddings come from; the last one also to its end where the
        family has pooled embeddings.
        """
        if self.conditioning.has_pooled and encoder is self.encoders[-1]:
            return ()
        layers = encoder.config.num_hidden_layers
        unread = [f"encoder.layers.{index}." for index in range(layers - self.skipped_layers, layers)]
        norm = [] if self.conditioning.has_final_norm else ["final_layer_norm."]
        return (*unread, "text_projection.", *norm)

    def with_lora(self, lora: LoraSpec) -> "TextEncoders":
        """Returns the text encoders that also take adapters."""
        encoders = tuple(replace(encoder, module=with_adapters(encoder.module, lora)) for encoder in self.encoders)
        return replace(self, encoders=encoders)

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


def warn_about_truncation(text: PromptEncoder, captions: Iterable[str]) -> None:
    """Warns once about all captions that are too long, and shows what is lost of the first one."""
    distinct = list(dict.fromkeys(captions))
    lost = [end for caption in distinct if (end := text.truncated_text(caption))]
    if lost:
        end = lost[0] if len(lost[0]) <= MAX_SHOWN else lost[0][: MAX_SHOWN - 4] + " ..."
        prompts = f"{len(lost)} of {pluralize(len(distinct), 'prompt')}"
        warn(f"{prompts} longer than {text.max_tokens} tokens; lost text: '{end}'")
