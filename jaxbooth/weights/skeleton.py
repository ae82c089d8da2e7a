"""A published model without its weights: configurations, scheduler and CLIP's tokenizer, made offline."""

import gzip
import json
import shutil
from itertools import chain
from pathlib import Path

from jaxbooth.assets import ASSETS
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_bytes, write_json, write_text
from jaxbooth.weights.architectures import END_TOKEN, PUBLISHED

CLIP_MERGES = ASSETS / "clip_merges.txt.gz"  # OpenAI's list, cut where CLIP cuts it: a header and 48,894 merges
START_TOKEN = "<|startoftext|>"


def byte_symbols() -> list[str]:
    """Returns the 256 symbols of byte-level BPE in the order of their token ids.

    Bytes that print stand for themselves; the others follow, as the letters from U+0100 on. Reference: OpenAI CLIP
    `simple_tokenizer.py`, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(256 - len(printable))]


def vocabulary(merges: str) -> dict[str, int]:
    """Returns CLIP's token -> id: bytes, bytes that end a word, merges by rank, and the two special tokens.

    Args:
        merges: the content of `merges.txt`, its header included.
    """
    symbols = byte_symbols()
    merged = (line.replace(" ", "") for line in merges.removesuffix("\n").split("\n")[1:])
    tokens = chain(symbols, (f"{symbol}</w>" for symbol in symbols), merged, (START_TOKEN, END_TOKEN))
    return {token: index for index, token in enumerate(tokens)}


def write_tokenizer(folder: Path, pad_token: str = END_TOKEN) -> None:
    """Writes CLIP's tokenizer of 49,408 tokens into `folder`, as `transformers.CLIPTokenizer` reads it.

    Args:
        pad_token: fills prompts up to 77 tokens.
    """
    merges = gzip.decompress(CLIP_MERGES.read_bytes())
    special = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN, "pad_token": pad_token}
    write_bytes(folder / "merges.txt", merges)
    write_text(folder / "vocab.json", json.dumps(vocabulary(merges.decode()), ensure_ascii=False))
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "add_prefix_space": False, "do_lower_case": True,
         "errors": "replace", **special},
    )  # fmt: skip


def write_skeleton(name: str, folder: Path) -> None:
    """Writes a whole diffusers folder but for its weights: configurations, scheduler and tokenizers.

    Args:
        name: of a published model, see `jaxbooth.weights.architectures.PUBLISHED`.
        folder: created when missing.

    Raises:
        UserError: `folder` is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another folder or remove it.")
    published = PUBLISHED[name]
    shutil.copytree(published.folder, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for encoder in published.family.text_encoders:
        write_tokenizer(folder / encoder.tokenizer, encoder.pad_token)
