"""Opens a tokenizer whose files are checked first, so that the tokenizers library meets only what it can read."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr, plain_file_name
from jaxbooth.storage.text import read_json, read_lines
from jaxbooth.storage.typed import STRICT, JsonList, validate

MAX_REASON = 200  # characters of the library's message
MAX_TOKEN = 256  # characters of a special token

TokenText = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)]


@dataclass(frozen=True, config=STRICT)
class TokenConfig:
    """A special token that is written with its properties."""

    content: TokenText
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False


@dataclass(frozen=True, config=STRICT)
class SpecialTokens:
    """The keys of `special_tokens_map.json`; `tokenizer_config.json` repeats them."""

    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None
    additional_special_tokens: JsonList[str | dict[str, Any]] | None = None


@dataclass(frozen=True, config=STRICT)
class TokenizerConfig(SpecialTokens):
    """The keys of `tokenizer_config.json` that decide token ids."""

    # transformers writes 10^30 where nobody set it
    model_max_length: Annotated[int, Field(ge=3)] | Annotated[float, Field(ge=3)] | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    fast_tokenizer_files: JsonList[str] | None = None


KINDS = {"tokenizer_config.json": TokenizerConfig, "special_tokens_map.json": SpecialTokens}
VOCABULARIES = ("vocab.json", "added_tokens.json")


def read_tokenizer(folder: Path, max_length: int, vocab_size: int) -> Any:
    """Opens a CLIP tokenizer from its files alone.

    Args:
        max_length: tokens that the text encoder takes.
        vocab_size: of the text encoder's embeddings.

    Raises:
        UserError: the folder holds no CLIP tokenizer, or one that does not fit the text encoder.
    """
    tokenizer = open_tokenizer(folder, "CLIPTokenizer")
    check_vocabulary(folder, tokenizer, vocab_size)
    tokenizer.model_max_length = int(min(tokenizer.model_max_length, max_length))
    return tokenizer


def open_tokenizer(folder: Path, class_name: str) -> Any:
    """Opens a tokenizer of one of transformers' classes, once its files are checked.

    Raises:
        UserError: the folder holds none, or one that cannot be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would miss PyTorch, which is not needed
    import transformers  # a second that `jaxbooth --help` should not cost

    if not (folder / "vocab.json").exists() and not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} holds no tokenizer (vocab.json and merges.txt); fetch the model again.")
    check_tokenizer_files(folder)
    try:
        return getattr(transformers, class_name).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{folder}: the tokenizer cannot be read ({reason}); fetch the model again.") from None


def check_tokenizer_files(folder: Path) -> None:
    """Refuses files of a tokenizer whose values have another type than theirs, or that name files elsewhere.

    Raises:
        UserError: the message names the file and the key.
    """
    files = [folder / name for name in (*KINDS, *VOCABULARIES, "tokenizer.json")]
    content = {file.name: read_json(file) for file in files if file.is_symlink() or file.exists()}
    for name, kind in KINDS.items():
        if name in content:
            check_tokens(validate(kind, content[name], str(folder / name)), str(folder / name))
    for name in content.get("tokenizer_config.json", {}).get("fast_tokenizer_files") or ():
        plain_file_name(name, str(folder / "tokenizer_config.json"))
    for name in VOCABULARIES:
        check_ids(content.get(name, {}), str(folder / name))
    if "vocab.json" in content and "tokenizer.json" not in content:
        check_merges(folder / "merges.txt", content["vocab.json"])


def check_tokens(config: SpecialTokens, source: str) -> None:
    """Refuses special tokens that are neither text nor text with its properties.

    Raises:
        UserError: the message names the key.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_token") and value is not None:
            check_token(value, f"{source}: {field.name}")
    for token in config.additional_special_tokens or ():
        check_token(token, f"{source}: additional_special_tokens")
    for number, token in (getattr(config, "added_tokens_decoder", None) or {}).items():
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise UserError(f"{source}: added_tokens_decoder has the key {ascii_repr(number)}, which is no token id.")
        check_token(token, f"{source}: added_tokens_decoder")


def check_token(token: str | Mapping[str, Any], source: str) -> None:
    """Refuses a special token that is no text, or whose properties are of other types.

    Raises:
        UserError: the message names the key.
    """
    validate(TokenConfig, token if isinstance(token, Mapping) else {"content": token}, source)


def check_ids(vocabulary: Mapping[str, Any], source: str) -> None:
    """Refuses ids that are no integers from 0 on, or that two tokens share.

    Raises:
        UserError: the message names a token.
    """
    seen: set[int] = set()
    for token, number in vocabulary.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise UserError(
                f"{source}: the id of {ascii_repr(token)} is {ascii_repr(number)}; expected an integer from 0 on."
            )
        if number in seen:
            raise UserError(f"{source}: the id {number} belongs to two tokens, of which one is {ascii_repr(token)}.")
        seen.add(number)


def check_merges(path: Path, vocabulary: Mapping[str, int]) -> None:
    """Refuses lines that are no pair of tokens of the vocabulary whose union is one too, and a file without any.

    Raises:
        UserError: the message names the line.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
    if lines and lines[0][0] == 1 and lines[0][1].startswith("#version"):
        lines = lines[1:]
    if not lines and any(len(token.removesuffix("</w>")) > 1 for token in vocabulary if token[:1] != "<"):
        raise UserError(f"{path} holds no merges, without which words are read letter by letter; fetch it again.")
    for number, line in lines:
        pair = line.split(" ")
        if len(pair) != 2 or not all(token in vocabulary for token in (*pair, "".join(pair))):
            raise UserError(
                f"{path}, line {number}: {ascii_repr(line)} merges no two tokens of vocab.json into one of it."
            )


def check_vocabulary(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Refuses ids that leave a gap or that the text encoder has no embedding for, and a tokenizer without an end.

    Raises:
        UserError: the message says which.
    """
    ids = set(tokenizer.get_vocab().values())
    if ids != set(range(len(ids))):
        raise UserError(f"{folder}: the {len(ids)} token ids are not 0 to {len(ids) - 1}; fetch the model again.")
    if len(ids) > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(ids)} tokens, but the text encoder knows {vocab_size}; fetch the model "
            "again."
        )
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if getattr(tokenizer, f"{key}_id") not in ids:
            raise UserError(f"{folder}: {key} {ascii_repr(getattr(tokenizer, key))} is not in the vocabulary.")
