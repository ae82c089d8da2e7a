"""Identifiers: how a model's tokenizer spells the word that stands for the subject, and which words would suit it.

A good identifier is rare, because a common word has to be parted from its meaning first, and short, because each of
several tokens means something too (Ruiz et al. 2023, section 3.2). Both depend on the model's vocabulary.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxbooth.base.text_encoder import TextEncoder, TextEncoders

# CLIP's ids follow the order in which byte pairs were merged, the frequent ones first; this is 0.6 of its 49,408.
COMMON_IDS = 29_645
# Rare words that CLIP's whole vocabulary holds as they are, but for the last, which suits smaller ones.
CANDIDATES = ("sks", "ohwx", "phol", "olis", "hta", "tft")
SUGGESTED = 3
MANY_MORE = 2  # tokens than the shortest candidate has


class Identifier(NamedTuple):
    """A word and its tokens.

    Attributes:
        ids: of the tokens, in the vocabulary.
    """

    word: str
    ids: tuple[int, ...]

    @property
    def is_common(self) -> bool:
        """Whether it is one token that was merged early: a word that the model knows."""
        return len(self.ids) == 1 and self.ids[0] < COMMON_IDS


def prompt_words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words."""
    return re.findall(r"[\w<>-]+", prompt.lower())


def spell(tower: TextEncoder, word: str) -> Identifier:
    """Returns a word with its tokens."""
    return Identifier(word, tuple(tower.tokenizer(word, add_special_tokens=False)["input_ids"]))


def find_identifier(
    side: TextEncoders, subject_words: Sequence[str], class_words: Collection[str]
) -> Identifier | None:
    """Returns the rarest word of the subject's that its class lacks and that is no placeholder token, if any."""
    learned = [word for token in side.placeholder_tokens for word in prompt_words(token.text)]
    spelled = [spell(side.encoders[0], word) for word in subject_words if word not in {*class_words, *learned}]
    return max(spelled, key=lambda identifier: (len(identifier.ids), max(identifier.ids, default=0)), default=None)


def suggest_identifiers(side: TextEncoders, used: Collection[str] = ()) -> list[Identifier]:
    """Returns a few rare words with the fewest tokens in the model's vocabulary.

    Args:
        used: words that are taken.
    """
    spelled = [spell(side.encoders[0], word) for word in CANDIDATES if word not in used]
    fewest = min(len(identifier.ids) for identifier in spelled)
    return [identifier for identifier in spelled if len(identifier.ids) == fewest][:SUGGESTED]


def token_texts(side: TextEncoders, identifier: Identifier) -> str:
    """Returns an identifier's tokens as text, "sk + s"."""
    tokens = side.encoders[0].tokenizer.convert_ids_to_tokens(list(identifier.ids))
    return " + ".join(token.removesuffix("</w>") for token in tokens)
