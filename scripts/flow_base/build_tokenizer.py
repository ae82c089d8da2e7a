"""Builds the base model's tokenizer: a small byte-level BPE in the layout of Qwen2's, with Qwen3's chat template.

    python scripts/flow_base/build_tokenizer.py DATA

Reads the labels and tags of DATA/images.json (see prepare.py) and writes DATA/tokenizer: 2,400 tokens from the text
and 5 special ones. Takes seconds. The chat template understands `enable_thinking`; a caption takes 8 tokens more than
its words. Made with tokenizers 0.23 and transformers 5.24.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

VOCABULARY = 2400
CAPTION_PARTS = [
    "an emoji of a",
    "a photo of a",
    "on a white background",
    "on a red orange yellow green blue purple pink gray black background",
    "3d flat modern noto twemoji style emoji",
    "in the jungle",
    "in the snow",
    "on the beach",
    "wearing a hat",
    "a drawing of a",
    "with",
    "sunglasses",
]
TEMPLATE_PARTS = ["user\n", "assistant\n", "system\n", "\n\n"]
# Qwen2's: contractions, words with the space before them, single digits, punctuation, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINKING_TOKENS = ["<think>", "</think>"]
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def training_texts(rows: list[dict[str, Any]]) -> list[str]:
    """Returns what the merges are learned from, every text with and without a space before it."""
    labels = [row["label"] for row in rows]
    tags = [tag for row in rows for tag in row["tags"]]
    texts = labels + tags + CAPTION_PARTS * 50 + TEMPLATE_PARTS * 400
    return texts + [" " + text for text in texts]


def learn_merges(texts: list[str]) -> tuple[dict[str, int], list[str]]:
    """Returns the vocabulary and the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return model["vocab"], merges


def added_token(text: str) -> dict[str, Any]:
    """Returns the entry of a token that stands outside the vocabulary."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **flags, "special": text in SPECIAL_TOKENS}


def main() -> None:
    """Writes the tokenizer's folder and shows some captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    folder = data / "tokenizer"
    folder.mkdir(exist_ok=True)
    vocabulary, merges = learn_merges(training_texts(json.loads((data / "images.json").read_text())))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    added = {
        str(len(vocabulary) + index): added_token(text) for index, text in enumerate(SPECIAL_TOKENS + THINKING_TOKENS)
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 512,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "add_bos_token": False,
        "errors": "replace",
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": added,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for caption in ("an emoji of a sks cat on a red background", "", "a 3d emoji of a grinning cat with smiling eyes"):
        messages = [{"role": "user", "content": caption}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        print(repr(caption), tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids))


if __name__ == "__main__":
    main()
