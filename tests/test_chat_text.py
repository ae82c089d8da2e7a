"""Prompts through a language model against diffusers' pipelines: token ids, hidden states, and what is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers import Flux2KleinPipeline, ZImagePipeline

from jaxbooth.base.chat_template import ChatTemplate, read_chat_template
from jaxbooth.base.chat_text import ChatTextEncoder, read_chat_text_encoder
from jaxbooth.base.identifier import find_identifier, read_identifier, token_texts
from jaxbooth.base.text_encoder import TextEmbeddings, select_prompts, warn_about_truncation
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import lora_spec
from jaxbooth.params import full_precision
from jaxbooth.sharding import param_shardings
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.family import ChatEncoderSpec
from tests.flow_models import TEMPLATE, write_tokenizer
from tests.torch_parity import TOLERANCE, relative_error

SPECS = {
    "z-image": ChatEncoderSpec("text_encoder", "tokenizer", (-2,), enable_thinking=True),
    "klein": ChatEncoderSpec("text_encoder", "tokenizer", (1, 2, 3), enable_thinking=False, pads_to_max_length=True),
}
TAIL = "then one last purple elephant"
LONG = "a cat, " * 200 + TAIL  # 630 tokens
PROMPTS = ["", "a photo of sks cat", "  Über-süß 猫🐈, cafe\u0301 ", "a <|im_end|>\n<|im_start|>system cat", LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text encoder and a byte-level tokenizer, as a diffusers model has them."""
    path = tmp_path_factory.mktemp("chat")
    write_tokenizer(path / "tokenizer")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=280, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)
    model.save_pretrained(path / "text_encoder")
    return path


@pytest.fixture(scope="module", params=SPECS)
def family(request) -> str:
    return request.param


def text_of(folder: Path, family: str) -> ChatTextEncoder:
    return read_chat_text_encoder(folder, SPECS[family], np.float32)


@pytest.fixture(scope="module")
def text(folder, family) -> ChatTextEncoder:
    return text_of(folder, family)


def encode(folder: Path, text: ChatTextEncoder, prompts: list[str], mesh: Any) -> TextEmbeddings:
    [encoder] = text.encoders
    params = {encoder.name: load_component(folder / encoder.name, encoder.module, param_shardings(mesh), np.float32)}
    with full_precision():
        return jax.jit(text.encode)(params, text.tokenize(prompts))


class Recorder(torch.nn.Module):
    """Stands where a pipeline's text encoder is, and keeps the token ids that it is given."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
        self.ids, self.mask = input_ids.numpy(), attention_mask.numpy().astype(bool)
        return self.model(input_ids, attention_mask=attention_mask.long(), **settings)


@torch.no_grad()
def in_diffusers(folder: Path, family: str, prompts: list[str]) -> tuple[Recorder, list[np.ndarray]]:
    """The recorder of the token ids, and each prompt's embeddings, of the family's own pipeline."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = Recorder(transformers.Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=torch.float32))
    if family == "klein":
        layers = list(SPECS["klein"].hidden_states)
        found = Flux2KleinPipeline._get_qwen3_prompt_embeds(model, tokenizer, prompts, hidden_states_layers=layers)
    else:
        pipeline: Any = SimpleNamespace(tokenizer=tokenizer, text_encoder=model, _execution_device="cpu")
        found = ZImagePipeline._encode_prompt(pipeline, list(prompts))
    return model, [embeds.numpy() for embeds in found]


def test_token_ids_are_those_that_diffusers_feeds(folder, family, text):
    recorder, _ = in_diffusers(folder, family, PROMPTS)
    [ids] = text.tokenize(PROMPTS).values()
    assert ids.shape == (len(PROMPTS), 1, 512)
    assert ids.dtype == np.int32
    for row, theirs, mask in zip(ids[:, 0], recorder.ids, recorder.mask, strict=True):
        np.testing.assert_array_equal(row[row >= 0], theirs[mask])
        assert not (row[mask.sum() :] + 1).any()  # padding is -1, and at the end
    assert (ids[-1] >= 0).all()


def test_embeddings_are_those_of_diffusers(folder, family, text, mesh):
    _, expected = in_diffusers(folder, family, PROMPTS)
    found = encode(folder, text, PROMPTS, mesh)
    assert found.prompt_embeds.shape == (len(PROMPTS), 512, text.width)
    assert found.prompt_embeds.dtype == np.float32
    assert found.pooled_prompt_embeds is None
    for row, theirs in zip(np.asarray(found.prompt_embeds), expected, strict=True):
        assert relative_error(row[: len(theirs)], theirs) < TOLERANCE
    if family == "z-image":
        np.testing.assert_array_equal(found.lengths, [len(theirs) for theirs in expected])
        assert not np.asarray(found.prompt_embeds[0, found.lengths[0] :]).any()
    else:  # 512 rows each, and those of padding are the model's
        assert {len(theirs) for theirs in expected} == {512}
        assert found.lengths is None


@pytest.mark.parametrize(("prompts", "length"), [(["", "a cat"], 32), (["a" * 30], 64), (["", LONG], 512)])
def test_z_image_pads_to_a_multiple_of_32_and_klein_to_512(folder, prompts, length):
    [ids] = text_of(folder, "z-image").tokenize(prompts).values()
    assert ids.shape == (len(prompts), 1, length)
    [ids] = text_of(folder, "klein").tokenize(prompts).values()
    assert ids.shape == (len(prompts), 1, 512)


def test_neighbours_and_their_length_do_not_change_an_embedding(folder, mesh):
    text = text_of(folder, "z-image")
    alone, beside = (encode(folder, text, prompts, mesh) for prompts in (["a cat"], ["a cat", LONG]))
    length = int(alone.lengths[0])
    assert (alone.prompt_embeds.shape[1], beside.prompt_embeds.shape[1]) == (32, 512)
    assert relative_error(beside.prompt_embeds[0, :length], np.asarray(alone.prompt_embeds[0, :length])) < TOLERANCE
    chosen = select_prompts(beside, np.array([1, 0, 0]))
    np.testing.assert_array_equal(chosen.lengths, [512, length, length])


def test_embeddings_have_the_dtype_that_the_model_computes_in(folder, family):
    text = read_chat_text_encoder(folder, SPECS[family], jnp.bfloat16)
    assert text.abstract_embeddings(2).prompt_embeds.dtype == jnp.bfloat16


def test_only_klein_closes_a_thought(folder):
    frames = {family: text_of(folder, family).encoders[0].tokenizer.template for family in SPECS}
    assert frames["z-image"] == ChatTemplate("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert frames["klein"].after == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_the_lost_end_of_a_long_prompt_is_shown(text, capsys):
    lost = text.truncated_text(LONG)
    assert LONG.endswith(lost)
    before, after = text.encoders[0].tokenizer.template
    kept = text.encoders[0].tokenizer.qwen(before + LONG.removesuffix(lost), verbose=False)["input_ids"]
    assert len(kept) == 512
    warn_about_truncation(text, [*PROMPTS, LONG])
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 5 prompts longer than 512 tokens; lost text: " in printed
    assert after not in printed
    assert text.truncated_text("a" * 480) == ""


def test_nothing_is_lost_where_only_the_end_of_the_template_is_cut(text):
    tokenizer = text.encoders[0].tokenizer
    before = len(tokenizer.qwen(tokenizer.template.before)["input_ids"])
    fits = "z" * (512 - before)
    assert len(tokenizer.prompt_ids(fits)) == 512
    assert tokenizer.prompt_ids(fits)[-1] == tokenizer.prompt_ids("z" * 600)[-1]
    assert text.truncated_text(fits) == ""
    assert text.truncated_text(fits + "y") == "y"
    assert text.truncated_text("é" * 300).strip("é") == ""


def test_what_the_model_and_a_plan_ask_of_it(family, text):
    assert text.width == 24 * len(SPECS[family].hidden_states)
    assert text.attention_heads == {4, 2}
    assert (text.clip_skip, text.max_token_chunks, text.max_tokens) == (0, 1, 512)
    assert text.placeholder_tokens == ()
    assert text.eos_token_id_to_set is None
    assert text.with_lora(lora_spec(4, None, rslora=False)) is text
    embeds = text.abstract_embeddings(3)
    assert embeds.prompt_embeds.shape == (3, 64 if family == "z-image" else 512, text.width)
    assert (embeds.lengths is None) == (family == "klein")


def test_a_plan_needs_no_tokenizer(folder, family, tmp_path):
    shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder")
    text = read_chat_text_encoder(tmp_path, SPECS[family], np.float32, with_tokenizer=False)
    assert text.abstract_embeddings(2) == text_of(folder, family).abstract_embeddings(2)


def test_an_identifier_is_read_as_within_a_sentence(folder):
    tokenizer = text_of(folder, "z-image").encoders[0].tokenizer
    identifier = read_identifier(tokenizer, "sks")
    assert token_texts(tokenizer, identifier) == "sks"
    found = find_identifier(tokenizer, ["a", "photo", "of", "sks", "cat"], ["a", "photo", "of", "cat"])
    assert found == identifier


def test_placeholder_tokens_are_refused_with_the_reason(text):
    with pytest.raises(UserError, match=r"--text.placeholder-tokens <sks>: .* never trained"):
        text.add_placeholder_tokens(["<sks>"], 1)


def changed(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    """A copy of the model with other values in a JSON file; None takes a key away."""
    copy = shutil.copytree(folder, tmp_path / "model")
    content = read_json(copy / file) | changes
    write_json(copy / file, {key: value for key, value in content.items() if value is not None})
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer/tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'; set it to 'right'"),
        ("tokenizer/tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("tokenizer/tokenizer_config.json", {"pad_token": 7}, "pad_token"),
        ("text_encoder/config.json", {"vocab_size": 200}, "the text encoder knows 200"),
        ("text_encoder/config.json", {"num_hidden_layers": 2, "layer_types": None}, "num_hidden_layers 2 is too few"),
        ("text_encoder/config.json", {"model_type": "qwen2"}, "model_type = 'qwen2'"),
    ],
)
def test_files_of_another_model_are_refused(folder, tmp_path, file, changes, message):
    with pytest.raises(UserError) as error:
        text_of(changed(folder, tmp_path, file, **changes), "klein")
    assert message in str(error.value)


def test_a_tokenizer_without_a_chat_template_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"tokenizer has no chat template .* take the tokenizer folder of"):
        text_of(copy, "z-image")


def test_a_template_in_the_configuration_is_as_good_as_its_own_file(folder, tmp_path):
    copy = changed(folder, tmp_path, "tokenizer/tokenizer_config.json", chat_template=TEMPLATE)
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    assert text_of(copy, "klein").tokenize(["a cat"]).keys() == {"text_encoder"}


def test_a_tokenizer_that_is_missing_is_named(folder, tmp_path):
    shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder")
    with pytest.raises(UserError, match="tokenizer holds no tokenizer"):
        text_of(tmp_path, "z-image")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content | trim }}", "does not put prompts into the text as they are"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not put prompts into the text as they are"),
        ("{{ raise_exception('no system message') }}", "fails (.*no system message"),
        ("{{ ''.__class__.__mro__ }}", "fails (.*SecurityError"),
        ("{{ 'a' * 10**11 }}{{ messages[0].content }}", "fails (.*MemoryError"),
        ("{{ 'a' * 5000 }}{{ messages[0].content }}", "puts 5,000 characters around a prompt"),
        ("a" * 70_000, "a chat template of 70,000 characters"),
    ],
)
def test_a_template_that_is_no_frame_around_prompts_is_refused(template, message):
    pattern = message.replace("(", r"\(").replace(".*", "@").replace(".", r"\.").replace("@", ".*")
    with pytest.raises(UserError, match=rf"^the folder .*{pattern}"):
        read_chat_template(template, (("enable_thinking", True),), "the folder")


def test_a_template_that_does_not_end_is_stopped():
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    with pytest.raises(UserError, match=r"^the folder has a chat template that takes more than 3 s; take"):
        read_chat_template(endless, (), "the folder", seconds=3)


def test_the_frame_is_what_transformers_renders():
    frame = read_chat_template(TEMPLATE, (("enable_thinking", False),), "the folder")
    tokenizer = transformers.Qwen2Tokenizer(chat_template=TEMPLATE)
    for prompt in PROMPTS:
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert frame.apply(prompt) == expected
