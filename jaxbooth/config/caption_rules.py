"""Which trigger words a run can train with."""

import re
from collections.abc import Sequence

from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.errors import UserError

FLAG = "--text.trigger-word"


def has_word(text: str, word: str) -> bool:
    """Whether a text holds a word, in capitals or not, and not as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def check_captions(text: TextConfig, subjects: Sequence[Subject]) -> None:
    """Refuses a trigger word that captions cannot hold, or that belongs to none or all of the prompts.

    Raises:
        UserError: the message names the flag.
    """
    word = text.trigger_word
    if word is None:
        return
    if not word.strip() or word != word.strip():
        raise UserError(f"{FLAG} {word!r} is empty or has spaces around it; write the word alone, such as sks.")
    if "," in word or "\n" in word:
        raise UserError(f"{FLAG} {word!r} holds a comma or a line end, which separate tags; name one word.")
    if len(subjects) > 1:
        raise UserError(
            f"{FLAG} {word} is one word, and this run has {len(subjects)} subjects; write the word of each into its "
            "captions."
        )
    [subject] = subjects
    if not has_word(subject.instance_prompt, word):
        raise UserError(
            f"{FLAG}: --data.instance-prompt {subject.instance_prompt!r} lacks the word {word}, and images are sampled "
            "with it; write the word into the prompt."
        )
    if has_word(subject.class_prompt or "", word):
        raise UserError(
            f"{FLAG} {word}: --data.class-prompt holds this word too, which is to stand for the subject alone; leave "
            "it out there."
        )
