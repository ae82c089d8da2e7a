"""Captions without the identifier: what output preservation shows the model beside the subject's own latents."""

import re
from collections.abc import Sequence

from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.config.subjects import ARTICLES, noun_phrase
from jaxbooth.data.images import ImageFile
from jaxbooth.errors import UserError, short_repr

WORD = re.compile(r"[\w<>-]+")


def identifier_words(subject: Subject, placeholder_tokens: Sequence[str] = ()) -> list[str]:
    """Returns the words that stand for a subject: those that its instance prompt has and its class prompt lacks.

    Without a class prompt it is the first word of what the instance prompt shows. Placeholder tokens always count.
    """
    words = WORD.findall(subject.instance_prompt)
    if subject.class_prompt:
        known = {word.lower() for word in WORD.findall(subject.class_prompt)}
        named = [word for word in words if word.lower() not in {*known, *ARTICLES}]
    else:
        named = WORD.findall(noun_phrase(subject.instance_prompt))[:1]
    return list(dict.fromkeys([*placeholder_tokens, *named]))


def remove_words(caption: str, words: Sequence[str]) -> str:
    """Removes words from a caption, whatever their case, and tags that are empty without them."""
    removed = {word.lower() for word in words}
    caption = WORD.sub(lambda match: " " if match[0].lower() in removed else match[0], caption)
    tags = [" ".join(tag.split()) for tag in caption.split(",")]
    return ", ".join(tag for tag in tags if tag)


def class_caption(caption: str, subject: Subject, placeholder_tokens: Sequence[str] = ()) -> str | None:
    """Returns a caption without the identifier, the class prompt for the instance prompt; None if it has no identifier.

    What is left may be empty.
    """
    words = identifier_words(subject, placeholder_tokens)
    if not words_in(caption, words):
        return None
    if caption == subject.instance_prompt and subject.class_prompt:
        return subject.class_prompt
    return remove_words(caption, words)


def words_in(caption: str, words: Sequence[str]) -> list[str]:
    """Returns those words that a caption holds, whatever their case."""
    held = {word.lower() for word in WORD.findall(caption)}
    return [word for word in words if word.lower() in held]


def class_captions(
    files: Sequence[ImageFile], subject: Subject, shared: str | None, placeholder_tokens: Sequence[str] = ()
) -> list[str]:
    """Returns the class caption of each of a subject's images.

    Args:
        shared: of all images, in place of their own captions without the identifier.

    Raises:
        UserError: a caption has no identifier to take out, or nothing else; the shared one names the subject.
    """
    if shared:
        check_shared(shared, files, identifier_words(subject, placeholder_tokens))
        return [shared] * len(files)
    captions = []
    for file in files:
        caption = class_caption(file.caption, subject, placeholder_tokens)
        words = " or ".join(identifier_words(subject, placeholder_tokens)) or "an identifier"
        if not caption:
            problem = "does not hold" if caption is None else "holds nothing but"
            raise UserError(
                f"{file.path}: its caption {short_repr(file.caption)} {problem} {words}, which output-preservation "
                "takes out; write it as in the instance prompt, or set --prior.class-caption, such as 'a photo of dog'."
            )
        captions.append(caption)
    return captions


def check_shared(shared: str, files: Sequence[ImageFile], identifier: Sequence[str]) -> None:
    """Refuses a class caption under which the frozen model's prediction and a photo would be taught at once."""
    reasons = [f"holds {word}, which names the subject" for word in words_in(shared, identifier)]
    reasons += [f"is the caption of {file.path}" for file in files if file.caption.lower() == shared.lower()]
    if reasons:
        raise UserError(
            f"--prior.class-caption {short_repr(shared)} {reasons[0]}; name the class alone: 'a photo of dog'."
        )


def with_class_captions(file: ImageFile, subject: Subject, text: TextConfig, shared: str | None = None) -> ImageFile:
    """Returns an image with the class captions of all captions that it is trained with.

    A variant whose identifier was dropped with its tag is its own class caption. One of which nothing else is left
    has that of the caption as written.

    Args:
        shared: see `class_captions`.

    Raises:
        UserError: a caption as written has no identifier to take out, or nothing else.
    """
    tokens = (*text.placeholder_tokens, *trigger_words(text, subject))
    if not text.varies_tags:
        files = [file._replace(caption=caption) for caption in file.captions]
        return file._replace(class_captions=tuple(class_captions(files, subject, shared, tokens)))
    [written] = class_captions([file], subject, shared, tokens)
    captions = []
    for variant in file.captions:
        without = class_caption(variant, subject, tokens)
        captions.append(shared or (variant if without is None else without or written))
    return file._replace(class_captions=tuple(captions))


def trigger_words(text: TextConfig, subject: Subject) -> list[str]:
    """Returns the words of the trigger word that the class prompt lacks."""
    known = {word.lower() for word in WORD.findall(subject.class_prompt or "")}
    return [word for word in WORD.findall(text.trigger_word or "") if word.lower() not in known]
