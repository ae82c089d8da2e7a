"""Placeholder tokens added to the vocabulary, against diffusers' textual inversion."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.sampling import ImageSampler, SamplingConfig, image_keys
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING, TOKEN_EMBEDDING, TextEmbeddings, TextEncoders
from jaxbooth.base.trainable import init_placeholder_embeddings
from jaxbooth.errors import UserError
from jaxbooth.export.diffusers import config_overrides
from jaxbooth.export.notes import end_token_code
from jaxbooth.weights.diffusers_write import write_folder
from tests.torch_parity import TOLERANCE, relative_error
from tests.torch_pipelines import END, KINDS, LEGACY_END, in_torch, write_pipeline

TOKENS, VECTORS = ("<sks>", "<toy>"), 2
FIRST = END + 1  # row of the first learned embedding, where table and tokenizer are equally long
PROMPTS = ["a photo of a <toy> and a <sks> cat", "<sks>, an emoji", "a red apple <SKS>"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return write_pipeline(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def text(folder: Path) -> TextEncoders:
    return BaseModel.read(folder, "float32").text


def learned(text: TextEncoders, entries: int) -> dict[str, np.ndarray]:
    """Embeddings as large as the table's own."""
    draw = np.random.default_rng(1)
    return {
        encoder.name: draw.normal(0, 0.6, (entries, encoder.config.hidden_size)).astype(np.float32)
        for encoder in text.encoders
    }


def encode(folder: Path, text: TextEncoders, rows: dict[str, np.ndarray], prompts: list[str], mesh) -> TextEmbeddings:
    base = BaseModel.read(folder, "float32").with_text(text)
    params = load_params(base, mesh, components=base.text_encoder_names)
    params = {name: values | {PLACEHOLDER_EMBEDDING: rows[name]} for name, values in params.items()}
    return jax.jit(text.encode)(params, text.tokenize(prompts))


@torch.no_grad()
def in_diffusers(folder: Path, rows: dict[str, np.ndarray], prompts: list[str]) -> list[np.ndarray]:
    """Context and pooled feature after `load_textual_inversion`, which knows nothing of a prompt's capital letters."""
    pipe = in_torch(folder)
    add_tokens(pipe, rows)
    prompt_embeds, _, *pooled = pipe.encode_prompt(
        [prompt.lower() for prompt in prompts], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return [prompt_embeds.numpy(), *(part.numpy() for part in pooled[:1])]


def add_tokens(pipe, rows: dict[str, np.ndarray]) -> None:
    for name, table in rows.items():
        for index, token in enumerate(TOKENS):
            pipe.load_textual_inversion(
                torch.tensor(table[VECTORS * index : VECTORS * (index + 1)]), token=token,
                text_encoder=getattr(pipe, name), tokenizer=getattr(pipe, name.replace("text_encoder", "tokenizer")),
            )  # fmt: skip


def test_prompts_with_placeholder_tokens_are_encoded_as_in_diffusers(folder, text, mesh):
    rows = learned(text, VECTORS * len(TOKENS))
    found = encode(folder, text.add_placeholder_tokens(TOKENS, VECTORS), rows, PROMPTS, mesh)
    expected = in_diffusers(folder, rows, PROMPTS)
    given = [part for part in found if part is not None]
    assert len(given) == len(expected)
    for ours, theirs in zip(given, expected, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE


def test_each_token_is_spelled_with_all_its_vectors_in_every_text_encoder(text):
    new = text.add_placeholder_tokens(TOKENS, VECTORS)
    for encoder in new.encoders:
        ids = encoder.tokenizer.token_ids("<toy>, a <SKS>")
        assert ids[:2] == [FIRST + 2, FIRST + 3]
        assert ids[-2:] == [FIRST, FIRST + 1]
        assert encoder.tokenizer.token_ids("a <sks>") == encoder.tokenizer.token_ids("a  <SKS>")


def test_the_text_encoders_themselves_learn_no_token(text):
    before = text.tokenize(["a <sks>"])
    text.add_placeholder_tokens(TOKENS, VECTORS)
    text.add_placeholder_tokens(TOKENS, 3)
    np.testing.assert_equal(text.tokenize(["a <sks>"]), before)


def test_old_configurations_find_the_end_among_larger_ids(tmp_path, mesh):
    found = []
    for end in (END, LEGACY_END):
        folder = write_pipeline("sdxl", tmp_path / str(end), end)
        text = BaseModel.read(folder, "float32").text.add_placeholder_tokens(TOKENS, VECTORS)
        found.append(encode(folder, text, learned(text, 4), ["a <sks> cat"], mesh).pooled_prompt_embeds)
    np.testing.assert_allclose(found[0], found[1], atol=TOLERANCE)


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "line"])
def test_images_with_placeholder_tokens_are_those_of_diffusers_though_the_configuration_is_old(
    as_folder, mesh, tmp_path
):
    model = write_pipeline("sdxl", tmp_path / "model", LEGACY_END)
    base = BaseModel.read(model, "float32")
    base = base.with_text(base.text.add_placeholder_tokens(TOKENS, VECTORS))
    rows, prompt = learned(base.text, VECTORS * len(TOKENS)), "a photo of a <toy> and a <sks> cat"
    params = {name: values | ({PLACEHOLDER_EMBEDDING: rows[name]} if name in rows else {})
              for name, values in load_params(base, mesh).items()}  # fmt: skip
    ours = (
        ImageSampler(base, mesh, SamplingConfig("ddim", 3, 7.5, 32), 1).generate(params, [prompt], 5, [0]).astype(float)
    )
    if as_folder:
        (tmp_path / "out").mkdir()
        write_folder(model, {}, tmp_path / "out", "float32", config_overrides(base))
    pipe = in_torch(tmp_path / "out" if as_folder else model)
    add_tokens(pipe, rows)
    if not as_folder:
        exec(end_token_code(base), {"pipe": pipe})
    key = jax.random.fold_in(image_keys(jax.random.key(5), np.zeros(1, np.uint32))[0], 0)
    latents = torch.tensor(np.array(jax.random.normal(key, base.latent_shape(32, 32)))).permute(2, 0, 1)[None]
    options = {"latents": latents, "num_inference_steps": 3, "guidance_scale": 7.5, "height": 32, "width": 32}
    theirs = 255 * pipe(prompt, output_type="np", **options).images
    assert np.abs(ours - theirs).max() <= 1
    pipe.text_encoder_2.text_model.eos_token_id = LEGACY_END
    assert np.abs(ours - 255 * pipe(prompt, output_type="np", **options).images).max() > 3


def test_learned_rows_follow_a_table_that_is_longer_than_the_vocabulary(tmp_path, mesh):
    folder = write_pipeline("sd1", tmp_path, text={"vocab_size": END + 8})
    text = BaseModel.read(folder, "float32").text.add_placeholder_tokens(("<sks>",), 1)
    assert text.encoders[0].tokenizer.token_ids("a <sks> cat")[1] == END + 8
    cat = init_placeholder_embeddings(text, load_params(BaseModel.read(folder, "float32"), mesh), ["cat"])
    found = encode(folder, text, cat, ["a <sks> emoji", "a cat emoji"], mesh).prompt_embeds
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_placeholder_tokens_start_as_the_initializers_tokens_in_turn(folder, text, mesh):
    params = load_params(BaseModel.read(folder, "float32"), mesh)
    new = text.add_placeholder_tokens(TOKENS, 3)
    found = init_placeholder_embeddings(new, params, ["Red apple"] * 2)
    for encoder in new.encoders:
        table, token_ids = params[encoder.name][TOKEN_EMBEDDING], encoder.tokenizer.token_ids
        red, apple = (table[token_ids(word)[0]] for word in ("red", "apple"))
        np.testing.assert_array_equal(found[encoder.name], np.stack([red, apple, red] * 2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[TextEncoders, Path]:
    folder = write_pipeline("sd1", tmp_path_factory.mktemp("plain"))
    return BaseModel.read(folder, "float32").text, folder


@pytest.mark.parametrize(("initializer", "message"), [("", "has no token"), ("<sks>", "is a placeholder token itself")])
def test_an_initializer_needs_known_tokens(plain, mesh, initializer, message):
    text, folder = plain
    params = load_params(BaseModel.read(folder, "float32"), mesh)
    with pytest.raises(UserError, match=message):
        init_placeholder_embeddings(text.add_placeholder_tokens(TOKENS, 1), params, [initializer] * 2)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("cat",), "'cat' is in the model's vocabulary already"),
        (("cat</w>",), "'cat</w>' is in the model's vocabulary already"),
        (("<|endoftext|>",), "is in the model's vocabulary already"),
        (("",), "must be one word without spaces"),
        (("my dog",), "must be one word without spaces"),
        (("<sks> ",), "must be one word without spaces"),
        (("MyDog",), "CLIP reads lower case only; name it 'mydog'"),
        (("<SKS>",), "CLIP reads lower case only; name it '<sks>'"),
        (("<sks>", "<toy>", "<sks>"), "names '<sks>' twice"),
        (("<sks>_1", "<sks>"), "'<sks>' is part of another placeholder token"),
    ],
)
def test_a_token_that_would_be_misread_is_refused(plain, tokens, message):
    with pytest.raises(UserError) as error:
        plain[0].add_placeholder_tokens(tokens, 1)
    assert str(error.value).startswith("--text.placeholder-tokens ")
    assert message in str(error.value)


def test_a_token_that_begins_like_another_is_told_apart(plain):
    text, _ = plain
    new = text.add_placeholder_tokens(("<sk>", "<sks>", "zqdog"), 1)
    ids = new.encoders[0].tokenizer.token_ids("<sks> <sk> zqdog")
    assert ids == [FIRST + 1, FIRST, FIRST + 2]


def test_a_token_is_found_inside_a_longer_one_as_in_transformers(plain):
    text, folder = plain
    tokenizer = in_torch(folder).tokenizer
    tokenizer.add_tokens(["zqdog"])
    new = text.add_placeholder_tokens(("zqdog",), 1)
    ids = new.encoders[0].tokenizer.token_ids("my zqdogs, <zqdog>")
    assert ids == tokenizer("my zqdogs, <zqdog>", add_special_tokens=False).input_ids
    assert ids.count(FIRST) == 2


def test_a_placeholder_token_counts_with_all_its_vectors_in_what_is_lost(plain):
    new = plain[0].add_placeholder_tokens(("<sks>",), 4)
    assert new.truncated_text("a cat " * 13 + "<SKS> dog") == "dog"  # 26 + 4 tokens fit
    assert new.truncated_text("a cat " * 14 + "<SKS> dog") == "<SKS> dog"
    assert dataclasses.replace(new, max_token_chunks=2).truncated_text("a cat " * 14 + "<SKS> dog") == ""


def test_a_second_call_goes_on_after_the_first(plain):
    new = plain[0].add_placeholder_tokens(("<sks>",), 2).add_placeholder_tokens(("<toy>",), 1)
    assert new.encoders[0].tokenizer.token_ids("<toy> <sks>") == [FIRST + 2, FIRST, FIRST + 1]
