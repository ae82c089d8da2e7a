"""Prompts that are longer than the text encoder reads, said once for all subjects before the work begins."""

import functools
from collections.abc import Iterator, Sequence

from jaxbooth.base.model import BaseModel
from jaxbooth.config.manifest import SubjectRun
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import pluralize, warn
from jaxbooth.errors import UserError, short_repr
from jaxbooth.runs.inputs import add_class_captions, scan_subject

MAX_NAMED = 5  # subjects of a warning
MAX_KNOWN = 1024  # prompts: subjects mostly share them with those beside them


def warn_about_long_prompts(subjects: Sequence[SubjectRun], base: BaseModel) -> None:
    """Warns once about all subjects with a prompt whose end is not read: how many they are, and the first ones' names.

    Subjects whose photos cannot be listed are left out; they fail when their turn comes.
    """
    lost_end = functools.lru_cache(MAX_KNOWN)(base.text.truncated_text)
    lost: dict[str, str] = {}
    for name, config, _ in subjects:
        end = next(filter(None, map(lost_end, subject_prompts(config))), "")
        if end:
            lost[name] = end
    if lost:
        first, *others = list(lost)[:MAX_NAMED]
        rest = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        warn(
            f"{pluralize(len(lost), 'subject')} with prompts longer than {base.text.max_tokens} tokens, whose end is "
            f"lost: {', '.join([f'{first} ({short_repr(lost[first])})', *others])}{rest}",
            on_any_process=True,
        )


def subject_prompts(config: Config) -> Iterator[str]:
    """Yields the captions of a subject's images as they are trained with, and the prompts of its configuration."""
    yield config.data.class_prompt or ""
    yield from config.validation.prompts
    try:
        [folder] = add_class_captions(config, [scan_subject(config, 0)])
    except (UserError, OSError):
        return
    for file in folder.images:
        yield from file.prompts
