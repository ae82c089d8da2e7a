"""Damaged configuration files: one value, the structure, the bytes or the file itself of one file of a model folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from jaxbooth.assets import DEMO_MODEL

JSON_FILES = ("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
              "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
              "unet/config.json", "vae/config.json")  # fmt: skip
FILES = (*JSON_FILES, "tokenizer/merges.txt")
DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 5, 8, 31, 64, 128, 1000, 4096, 65536, 10**9, 10**30, 10**400, -0.0, 0.5, 1.5,
    1e-300, 1e300, float("nan"), float("inf"), "", "x", "77", "silu", "gelu", "../../x", "\ud800", "é" * 10**5, [], [1],
    [1, 2], [1, 2, 3], [128, 128], [[1], [2, 2], 3], ["x"] * 3, [None] * 3, {}, {"a": 1}, DEEP,
)  # fmt: skip
KEYS = ("a_key_from_the_future", "num_attention_heads", "reverse_transformer_layers_per_block", "trained_betas",
        "timestep_type", "use_flow_sigmas", "latents_mean", "added_tokens_decoder", "additional_special_tokens",
        "init_inputs", "vocab_file", "auto_map", "tokenizer_object", "chat_template", "k" * 10**4)  # fmt: skip
CONTENTS = (b"", b"{}", b"[]", b"null", b"0", b'"x"', b"[" * 10**5, b'{"a":' * 10**5, b"9" * 5000, b"\x00" * 100,
            b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\r\n" * 100, b"a b c\n" * 50)  # fmt: skip


class Mutation(NamedTuple):
    """What becomes of a file of the model folder.

    Attributes:
        file: of FILES.
        what: as it is shown when a test fails.
        apply: changes the file at a path, which is a copy of the original.
    """

    file: str
    what: str
    apply: Callable[[Path], object]

    def __repr__(self) -> str:
        return f"{self.file}: {self.what}"


def paths_of(value: Any, prefix: tuple = ()) -> list[tuple]:
    """Returns the paths of all values in a JSON value, itself excluded."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, child in children:
        found += [(*prefix, key), *paths_of(child, (*prefix, key))]
    return found


CONTENT = {file: json.loads((DEMO_MODEL / file).read_text()) for file in JSON_FILES}
PLACES = {file: paths_of(content) for file, content in CONTENT.items()}


def edited(path: Path, place: tuple, change: Callable[[Any, Any], object]) -> None:
    """Changes the container of one value of a JSON file."""
    content = container = json.loads(path.read_text())
    for key in place[:-1]:
        container = container[key]
    change(container, place[-1])
    path.write_text(json.dumps(content))


def replaced_by(path: Path, make: Callable[[Path], object]) -> None:
    """Puts something else in a file's place."""
    path.unlink()
    make(path)


@st.composite
def json_mutations(draw: st.DrawFn) -> Mutation:
    """One value of a JSON file replaced, removed or added."""
    file = draw(st.sampled_from(JSON_FILES))
    place = draw(st.sampled_from(PLACES[file]))
    value = draw(st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=20))
    kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add")))
    key = draw(st.sampled_from(KEYS))
    if kind == "replace":
        apply = lambda path: edited(path, place, lambda holder, key: holder.__setitem__(key, value))  # noqa: E731
    elif kind == "remove":
        apply = lambda path: edited(path, place, lambda holder, key: holder.__delitem__(key))  # noqa: E731
    else:
        apply = lambda path: edited(path, (key,), lambda holder, key: holder.__setitem__(key, value))  # noqa: E731
    return Mutation(
        file, f"{kind} {key[:60] if kind == 'add' else place} {'' if kind == 'remove' else ascii(value)[:60]}", apply
    )


@st.composite
def byte_mutations(draw: st.DrawFn) -> Mutation:
    """A file cut short, one of its bytes changed, or other content altogether."""
    file = draw(st.sampled_from(FILES))
    size = (DEMO_MODEL / file).stat().st_size
    at, byte = draw(st.integers(0, size - 1)), draw(st.binary(min_size=1, max_size=3))
    content = draw(st.sampled_from(CONTENTS))
    kind = draw(st.sampled_from(("cut", "change", "insert", "content")))
    made = {
        "cut": lambda old: old[:at],
        "change": lambda old: old[:at] + byte + old[at + len(byte) :],
        "insert": lambda old: old[:at] + byte + old[at:],
        "content": lambda old: content,
    }[kind]
    return Mutation(
        file, f"{kind} {at} {byte!r} {content[:20]!r}", lambda path: path.write_bytes(made(path.read_bytes()))
    )


@st.composite
def file_mutations(draw: st.DrawFn) -> Mutation:
    """No file, a folder, a loop of symlinks, a dangling one or a FIFO in a file's place."""
    file = draw(st.sampled_from(FILES))
    makers = {
        "nothing": lambda path: None,
        "folder": lambda path: path.mkdir(),
        "loop": lambda path: path.symlink_to(path),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "fifo": os.mkfifo,
    }
    kind = draw(st.sampled_from(sorted(makers)))
    return Mutation(file, kind, lambda path: replaced_by(path, makers[kind]))


MUTATIONS = json_mutations() | json_mutations() | json_mutations() | byte_mutations() | file_mutations()


def mutated_model(folder: Path, mutations: list[Mutation]) -> Path:
    """Writes a copy of the demo model into an empty folder, its weights behind symlinks, with one mutation a file."""
    folder.mkdir()
    for source in sorted(DEMO_MODEL.rglob("*")):
        target = folder / source.relative_to(DEMO_MODEL)
        if source.is_dir():
            target.mkdir()
        elif source.suffix == ".safetensors":
            target.symlink_to(source)
        else:
            shutil.copyfile(source, target)
    for mutation in {mutation.file: mutation for mutation in mutations}.values():
        mutation.apply(folder / mutation.file)
    return folder
