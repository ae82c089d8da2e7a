"""Identifiers: which tokens a model's tokenizer makes of the word that stands for the subject, and which words suit it.

A good identifier is rare, because a common word has to be parted from its meaning first, and short, because each of
several tokens means something too (Ruiz et al. 2023, section 3.2). Both depend on the model's vocabulary.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxbooth.base.chat_tokenizer import ChatTokenizer
from jaxbooth.base.tokenizer import Tokenizer

# Rare words that are one token in CLIP's vocabulary, but for the last, which suits smaller vocabularies.
CANDIDATES = ("sks", "ohwx", "phol", "olis", "hta", "tft")
SUGGESTED = 3
MANY_MORE = 2  # tokens than the shortest candidate has
AnyTokenizer = Tokenizer | ChatTokenizer


class Identifier(NamedTuple):
    """A word and the ids of its tokens in the vocabulary; those below `common_ids` stand for frequent text."""

    word: str
    ids: tuple[int, ...]
    common_ids: int

    @property
    def is_common(self) -> bool:
        """Whether it is one token that was merged early: a word that the model knows."""
        return len(self.ids) == 1 and self.ids[0] < self.common_ids


def prompt_words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words."""
    return re.findall(r"[\w<>-]+", prompt.lower())


def read_identifier(tokenizer: AnyTokenizer, word: str) -> Identifier:
    """Returns a word with its tokens."""
    return Identifier(word, tuple(tokenizer.vocabulary_ids(word)), tokenizer.common_ids)


def find_identifier(
    tokenizer: AnyTokenizer, subject_words: Sequence[str], class_words: Collection[str]
) -> Identifier | None:
    """Returns the rarest word of the subject's that its class lacks and that is no placeholder token, if any."""
    placeholders = [word for token in tokenizer.placeholder_tokens for word in prompt_words(token.text)]
    words = [word for word in subject_words if word not in {*class_words, *placeholders}]
    identifiers = [read_identifier(tokenizer, word) for word in words]
    return max(identifiers, key=lambda identifier: (len(identifier.ids), max(identifier.ids, default=0)), default=None)


def suggest_identifiers(tokenizer: AnyTokenizer, used: Collection[str] = ()) -> list[Identifier]:
    """Returns a few rare words with the fewest tokens in the model's vocabulary.

    Args:
        used: words that are taken.
    """
    identifiers = [read_identifier(tokenizer, word) for word in CANDIDATES if word not in used]
    fewest = min(len(identifier.ids) for identifier in identifiers)
    return [identifier for identifier in identifiers if len(identifier.ids) == fewest][:SUGGESTED]


def token_texts(tokenizer: AnyTokenizer, identifier: Identifier) -> str:
    """Returns an identifier's tokens as text, "sk + s"."""
    return " + ".join(tokenizer.token_texts(identifier.ids))
