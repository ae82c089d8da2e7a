"""Text encoders against diffusers and transformers: prompts in, what the UNet sees out."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.text_encoder import TextEmbeddings, warn_about_truncation
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from tests.torch_parity import TOLERANCE, relative_error
from tests.torch_pipelines import END, KINDS, LEGACY_END, in_torch, write_pipeline

LONG = "a red apple and " + " ".join(["a cat on a blue background,"] * 8)  # 52 tokens; the encoders take 30 and two
PROMPTS = ["an emoji of a cat", "A RED  apple, über-ripe!! 3d", LONG]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Writes each folder once: the arguments of `write_pipeline` -> its path."""

    @functools.cache
    def write(kind: str, end: int = END, **settings: bool) -> Path:
        return write_pipeline(kind, tmp_path_factory.mktemp(kind), end, **settings)

    return write


@pytest.fixture(scope="module")
def encode(mesh):
    """Encodes at most three prompts with a folder's own weights."""

    @functools.cache
    def program(folder: Path, clip_skip: int, chunks: int) -> Callable[[list[str]], TextEmbeddings]:
        base = BaseModel.read(folder, "float32", clip_skip, chunks)
        params, run = load_params(base, mesh, components=base.text_encoder_names), jax.jit(base.text.encode)
        return lambda prompts: run(params, base.text.tokenize(prompts))

    def run(folder: Path, prompts: list[str], clip_skip: int = 0, chunks: int = 1) -> TextEmbeddings:
        padded = [*prompts, "", "", ""][:3]  # one program for all
        found = program(folder, clip_skip, chunks)(padded)
        return jax.tree.map(lambda array: array[: len(prompts)], found)

    return run


@torch.no_grad()
def in_diffusers(folder: Path, prompts: list[str], clip_skip: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Context and, for SDXL, pooled feature, as diffusers' pipelines compute them."""
    prompt_embeds, _, *pooled = in_torch(folder).encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    return prompt_embeds.numpy(), pooled[0].numpy() if pooled else None


def check(found: TextEmbeddings, prompt_embeds: np.ndarray, pooled: np.ndarray | None) -> None:
    assert found.prompt_embeds.shape == prompt_embeds.shape
    assert relative_error(found.prompt_embeds, prompt_embeds) < TOLERANCE
    assert (found.pooled_prompt_embeds is None) == (pooled is None)
    if pooled is not None:
        assert found.pooled_prompt_embeds.shape == pooled.shape
        assert relative_error(found.pooled_prompt_embeds, pooled) < TOLERANCE


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_in_diffusers(folder_of, encode, kind, clip_skip):
    folder = folder_of(kind)
    check(encode(folder, PROMPTS, clip_skip), *in_diffusers(folder, PROMPTS, clip_skip))


def test_an_old_configuration_names_another_end_token_and_means_the_highest_id(folder_of, encode):
    folder = folder_of("sdxl", LEGACY_END)
    check(encode(folder, PROMPTS), *in_diffusers(folder, PROMPTS))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_prompt_is_two_special_tokens_and_padding(folder_of, encode, kind):
    settings = {"force_zeros_for_empty_prompt": False} if kind == "sdxl" else {}
    folder = folder_of(kind, **settings)
    check(encode(folder, ["", "a cat"]), *in_diffusers(folder, ["", "a cat"]))


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxls_default_negative_prompt_is_what_the_pipeline_says(folder_of, encode, zeros):
    folder = folder_of("sdxl", force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        _, prompt_embeds, _, pooled = in_torch(folder).encode_prompt(
            "a cat", device="cpu", do_classifier_free_guidance=True
        )
    found = encode(folder, ["", "a cat"])
    np.testing.assert_allclose(found.prompt_embeds[0], prompt_embeds[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found.pooled_prompt_embeds[0], pooled[0].numpy(), atol=TOLERANCE)
    assert np.any(found.prompt_embeds[0]) != zeros
    assert np.abs(found.prompt_embeds[1]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_pipeline_does_not_say_of_an_empty_prompt_is_diffusers_default(folder_of, encode, tmp_path, kind):
    folder = shutil.copytree(folder_of(kind), tmp_path / "model")
    index = read_json(folder / "model_index.json")
    index.pop("force_zeros_for_empty_prompt", None)
    write_json(folder / "model_index.json", index)
    with torch.no_grad():
        expected = in_torch(folder).encode_prompt(
            ["a cat"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    found = encode(folder, ["", "a cat"])
    np.testing.assert_allclose(found.prompt_embeds[0], expected[1][0].numpy(), atol=TOLERANCE)
    assert np.any(found.prompt_embeds[0]) == (kind != "sdxl")


def test_each_text_encoder_of_sdxl_pads_with_its_own_token(folder_of):
    text = BaseModel.read(folder_of("sdxl"), "float32").text
    ids = text.tokenize(["a cat"])
    first, second = ids["text_encoder"][0, 0], ids["text_encoder_2"][0, 0]
    assert first[0] == second[0] == END - 1
    assert first[3] == second[3] == END
    assert set(first[4:]) == {END}
    assert set(second[4:]) == {0}


@torch.no_grad()
def encoded_apart(folder: Path, prompt: str, chunks: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Encodes each piece of 30 tokens alone in transformers and joins the features."""
    pipe = in_torch(folder)
    is_xl = hasattr(pipe, "text_encoder_2")
    contexts, pooled = [], None
    for name in ("", "_2") if is_xl else ("",):
        tokenizer, model = getattr(pipe, f"tokenizer{name}"), getattr(pipe, f"text_encoder{name}")
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        pieces = [ids[30 * index : 30 * (index + 1)] for index in range(chunks)]
        padding = [tokenizer.pad_token_id] * 30
        rows = [[*[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id], *padding][:32] for piece in pieces]
        output = model(torch.tensor(rows), output_hidden_states=True)
        states = output.hidden_states[-2] if is_xl else output.last_hidden_state
        contexts.append(states.reshape(1, -1, states.shape[-1]).numpy())
        pooled = output.text_embeds[:1].numpy() if name == "_2" else pooled
    return np.concatenate(contexts, axis=-1), pooled


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_encoded_apart_and_joined(folder_of, encode, kind, chunks):
    folder = folder_of(kind)
    found = encode(folder, [LONG], chunks=chunks)
    assert found.prompt_embeds.shape[1] == 32 * chunks
    check(found, *encoded_apart(folder, LONG, chunks))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_short_prompt_is_followed_by_empty_chunks(folder_of, encode, kind):
    settings = {"force_zeros_for_empty_prompt": False} if kind == "sdxl" else {}
    folder = folder_of(kind, **settings)
    one, three = encode(folder, ["a cat", ""]), encode(folder, ["a cat", ""], chunks=3)
    np.testing.assert_allclose(three.prompt_embeds[0, :32], one.prompt_embeds[0], atol=1e-5)
    np.testing.assert_allclose(three.prompt_embeds[0, 32:64], one.prompt_embeds[1], atol=1e-5)
    np.testing.assert_allclose(three.prompt_embeds[0, 64:], one.prompt_embeds[1], atol=1e-5)
    if kind == "sdxl":
        np.testing.assert_allclose(three.pooled_prompt_embeds, one.pooled_prompt_embeds, atol=1e-5)


@pytest.mark.parametrize(("chunks", "kept"), [(1, 30), (2, 60)])
def test_the_end_that_does_not_fit_is_named_as_it_was_written(folder_of, capsys, chunks, kept):
    text = BaseModel.read(folder_of("sd1"), "float32", max_token_chunks=chunks).text
    words = ["a", "Cat"] * 31  # a token each
    lost = " ".join(words[kept:])
    assert text.truncated_text(" ".join(words)) == lost
    assert text.truncated_text(" ".join(words[:kept])) == ""
    warn_about_truncation(text, ["a cat", " ".join(words), " ".join(words)])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"1 of 2 prompts longer than {kept + 2} tokens; lost text: '{lost}'" in printed


def test_a_long_text_that_does_not_fit_is_shown_in_part(folder_of, capsys):
    text = BaseModel.read(folder_of("sd1"), "float32").text
    warn_about_truncation(text, ["a cat " * 500])
    printed = capsys.readouterr().out
    assert " ..." in printed
    assert len(printed) < 400


def test_a_table_with_more_rows_than_the_tokenizer_has_words_is_read(tmp_path, encode):
    folder = write_pipeline("sd1", tmp_path, text={"vocab_size": END + 8})
    check(encode(folder, PROMPTS), *in_diffusers(folder, PROMPTS))
