"""What a user must tell another program about an export: sentences for the terminal and the model card.

Everything that an export can say in its own files is said there, and has no note.
"""

from jaxbooth.base.model import BaseModel
from jaxbooth.export.format import Export


def reader_notes(export: Export) -> list[str]:
    """Returns the notes of an export, each one a sentence without its full stop."""
    notes, skip = [], export.base.text.clip_skip
    if skip:
        notes.append(f"set clip_skip={skip} in diffusers, or clip skip {skip + 1} in a web UI: it was trained so")
    code = end_token_code(export.base)
    if code and not export.format.has_configuration:
        notes.append(
            f"in diffusers, set `{code}` before you generate images: the base model's configuration names 2 as the end "
            "token, and the pooled text would be read at a placeholder token instead"
        )
    return notes + export.format.notes(export)


def end_token_code(base: BaseModel) -> str | None:
    """Returns the line of Python that makes diffusers read the pooled text at the end token, where it would not."""
    end = base.text.eos_token_id_to_set
    return None if end is None else f"pipe.{base.text_encoder_names[-1]}.text_model.eos_token_id = {end}"
