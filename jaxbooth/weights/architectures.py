"""The published architectures that a single weight file can hold: their configurations and CLIP's tokenizer, offline.

A `.safetensors` file of a whole model says nothing about its structure, so the configurations of the models that
everyone fine-tunes ship with the package: stable-diffusion-v1-5, stable-diffusion-2-1 (768 px) and
stable-diffusion-xl-base-1.0, as their authors published them, less the paths on their disks and the safety checker.
"""

import gzip
import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Literal

from jaxbooth.assets import ASSETS
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_bytes, write_json, write_text

Family = Literal["sd15", "sd21", "sdxl"]
FAMILIES: tuple[Family, ...] = ("sd15", "sd21", "sdxl")
CLIP_MERGES = ASSETS / "clip_merges.txt.gz"  # OpenAI's list, cut where CLIP cuts it: a header and 48,894 merges
START, END = "<|startoftext|>", "<|endoftext|>"
PAD_TOKENS = {
    "sd15": {"tokenizer": END},
    "sd21": {"tokenizer": "!"},  # OpenCLIP pads with id 0
    "sdxl": {"tokenizer": END, "tokenizer_2": "!"},
}


def family_folder(name: Family) -> Path:
    """Returns the folder of a family's configurations: a diffusers model without weights and tokenizers."""
    return ASSETS / "families" / name


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
    tokens = chain(symbols, (f"{symbol}</w>" for symbol in symbols), merged, (START, END))
    return {token: index for index, token in enumerate(tokens)}


def write_tokenizer(folder: Path, pad_token: str = END) -> None:
    """Writes CLIP's tokenizer of 49,408 tokens into `folder`, as `transformers.CLIPTokenizer` reads it.

    Args:
        pad_token: fills prompts up to 77 tokens.
    """
    merges = gzip.decompress(CLIP_MERGES.read_bytes())
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    write_bytes(folder / "merges.txt", merges)
    write_text(folder / "vocab.json", json.dumps(vocabulary(merges.decode()), ensure_ascii=False))
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "add_prefix_space": False, "do_lower_case": True,
         "errors": "replace", **special},
    )  # fmt: skip


def write_skeleton(name: Family, folder: Path) -> None:
    """Writes a whole diffusers folder of a family but for its weights: configurations, scheduler and tokenizers.

    Args:
        folder: created when missing.

    Raises:
        UserError: `folder` is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another folder or remove it.")
    shutil.copytree(family_folder(name), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for tokenizer, pad_token in PAD_TOKENS[name].items():
        write_tokenizer(folder / tokenizer, pad_token)
