"""The tokenizer of a language model that encodes prompts: a prompt in its chat template, to token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.base.chat_template import MAX_TEMPLATE, ChatTemplate, read_chat_template
from jaxbooth.base.tokenizer import PlaceholderToken
from jaxbooth.base.tokenizer_files import open_tokenizer
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.text import read_text

TEMPLATE_FILE = "chat_template.jinja"
# Byte pairs that were merged early stand for frequent text; this is 0.6 of Qwen3's 151,643.
COMMON_IDS = 90_986


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template.

    Attributes:
        qwen: transformers' `Qwen2Tokenizer`.
        max_length: tokens that are read of a prompt in its template.
        pad_token_id: fills a row of the text encoder's input.
    """

    qwen: Any
    template: ChatTemplate
    max_length: int
    pad_token_id: int

    @property
    def placeholder_tokens(self) -> tuple[PlaceholderToken, ...]:
        """None: a text encoder of this kind is never trained."""
        return ()

    @property
    def common_ids(self) -> int:
        """Ids below which a word is a common one."""
        return COMMON_IDS

    def prompt_ids(self, prompt: str) -> list[int]:
        """Returns the ids of a prompt in its template; what is too long is cut off at the end, template and all."""
        text = self.template.apply(prompt)
        return self.qwen(text, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]

    def truncated_text(self, prompt: str) -> str:
        """Returns the end of a prompt that is not read, or an empty string."""
        text = self.template.apply(prompt)
        encoded = self.qwen(text, return_offsets_mapping=True, verbose=False)
        if len(encoded["input_ids"]) <= self.max_length:
            return ""
        first_lost, _ = encoded["offset_mapping"][self.max_length]
        return prompt[max(0, first_lost - len(self.template.before)) :].strip()

    def vocabulary_ids(self, word: str) -> list[int]:
        """Returns the ids of a word within a sentence: tokens begin with the space before them."""
        return self.qwen(f" {word}", add_special_tokens=False, verbose=False)["input_ids"]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token, without spaces around it."""
        return [self.qwen.decode([id]).strip() for id in ids]


def read_chat_tokenizer(folder: Path, max_length: int, vocab_size: int, enable_thinking: bool) -> ChatTokenizer:
    """Opens a tokenizer and its chat template from their files alone.

    Args:
        max_length: tokens that are read of a prompt.
        vocab_size: rows of the text encoder's embeddings.
        enable_thinking: what the template is told; Qwen3's adds an empty thought where it is off.

    Raises:
        UserError: the folder holds no such tokenizer, one without a chat template or one that does not fit the text
            encoder.
    """
    if (folder / TEMPLATE_FILE).exists():
        read_text(folder / TEMPLATE_FILE, max_bytes=4 * MAX_TEMPLATE)
    qwen = open_tokenizer(folder, "Qwen2Tokenizer")
    check_sides(folder, qwen)
    check_ids(folder, qwen, vocab_size)
    variables = {**qwen.special_tokens_map, "enable_thinking": enable_thinking}
    known = tuple(sorted((name, value) for name, value in variables.items() if isinstance(value, str | bool)))
    template = read_chat_template(find_template(folder, qwen), known, str(folder))
    return ChatTokenizer(qwen, template, max_length, qwen.pad_token_id)


def find_template(folder: Path, qwen: Any) -> str:
    """Returns the source of a tokenizer's chat template; of several, the one called "default".

    Raises:
        UserError: there is none.
    """
    template = qwen.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError(
            f"{folder} has no chat template ({TEMPLATE_FILE}, or chat_template in tokenizer_config.json), by which "
            "this model reads prompts; take the tokenizer folder of the published model."
        )
    return template


def check_sides(folder: Path, qwen: Any) -> None:
    """Refuses a tokenizer that pads or cuts prompts at their start.

    Raises:
        UserError: the message names the key.
    """
    for key in ("padding_side", "truncation_side"):
        side = getattr(qwen, key)
        if side != "right":
            raise UserError(f"{folder / 'tokenizer_config.json'}: {key} is {ascii_repr(side)}; set it to 'right'.")


def check_ids(folder: Path, qwen: Any, vocab_size: int) -> None:
    """Refuses ids that the text encoder has no embedding for, and a tokenizer without padding.

    Raises:
        UserError: the message says which.
    """
    ids = set(qwen.get_vocab().values())
    if max(ids) >= vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has the id {max(ids)}, but the text encoder knows {vocab_size}; the parts must "
            "be of one model."
        )
    if qwen.pad_token_id not in ids:
        raise UserError(f"{folder}: pad_token {ascii_repr(qwen.pad_token)} is not in the vocabulary.")
