"""What a subject and its class are called, read off its prompts, and the word that its placeholder token starts as."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.errors import UserError

ARTICLES = ("a", "an", "the", "my", "our")


class SubjectName(NamedTuple):
    """What a subject is called.

    Attributes:
        phrase: with its identifier, "sks dog".
        noun: its class, "dog".
    """

    phrase: str
    noun: str

    @property
    def identifier(self) -> list[str]:
        """The words that the subject's name has and its class lacks."""
        return [word for word in self.phrase.split() if word not in self.noun.split()]


def noun_phrase(prompt: str) -> str:
    """Returns what a prompt shows: the words after its last "of", up to a comma, without an article."""
    words = prompt.split()
    if "of" in words:
        words = words[len(words) - words[::-1].index("of") :]
    words = re.split(r"[,;:]", " ".join(words))[0].rstrip(" .!?").split()
    return " ".join(words[1:] if words and words[0].lower() in ARTICLES else words)


def name_subject(subject: Subject, phrase: str | None = None, noun: str | None = None) -> SubjectName:
    """Returns a subject's name and class, read off its prompts.

    Args:
        phrase, noun: names to use instead.
    """
    phrase = phrase or noun_phrase(subject.instance_prompt)
    if not noun:
        noun = noun_phrase(subject.class_prompt) if subject.class_prompt else " ".join(phrase.split()[1:])
    return SubjectName(phrase, noun or phrase)


def initializer_token(text: TextConfig, subjects: Sequence[Subject], token: str) -> str:
    """Returns the word that a placeholder token starts from: as set, or the class of the subject whose prompt has it.

    Raises:
        UserError: there is no class prompt to take it from.
    """
    if text.initializer_token:
        return text.initializer_token
    subject = next((subject for subject in subjects if token in subject.instance_prompt), subjects[0])
    class_words = noun_phrase(subject.class_prompt or "").split()
    if not class_words:
        raise UserError("--text.initializer-token is missing: a word that the new embeddings start from, such as dog.")
    return class_words[-1]
