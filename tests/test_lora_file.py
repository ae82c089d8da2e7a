"""LoRA files: diffusers computes the weights that jaxbooth trained, and files come back as they were written."""

import functools
import re
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import peft
import pytest
from diffusers.training_utils import _collate_lora_metadata
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxbooth.export.lora import kohya_is_read
from jaxbooth.models.config import UNetConfig
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.names import kohya_name
from jaxbooth.weights.lora.read import read_lora
from tests.lora_files import (
    UNETS,
    merged,
    random_lora,
    structure,
    torch_pipeline,
    torch_weights,
    trainable,
    write,
)


def check_in_diffusers(family: str, path: Path, lora: LoraWeights) -> None:
    pipeline = torch_pipeline(family)
    before = torch_weights(pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=list(trainable(pipeline)))
    after, expected = torch_weights(pipeline), merged(before, lora)
    for key, value in before.items():
        np.testing.assert_allclose(after[key], expected.get(key, value), rtol=0, atol=1e-5 * np.abs(after[key]).max())
    assert set(expected) == {key for key, value in before.items() if not np.array_equal(value, after[key])}


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_diffusers_merges_what_was_trained(layout, family, tmp_path):
    lora = random_lora(family)
    check_in_diffusers(family, write(layout, tmp_path / "lora.safetensors", lora, family), lora)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_merges_dora_from_the_peft_file(family, tmp_path):
    lora = random_lora(family, dora=True)
    check_in_diffusers(family, write("peft", tmp_path / "lora.safetensors", lora), lora)


def part_of(lora: LoraWeights, pattern: str) -> LoraWeights:
    """The adapters of the modules that a pattern names."""
    alphas = {key: alpha for key, alpha in lora.alphas.items() if re.fullmatch(pattern, key)}
    adapters = {name: value for name, value in lora.adapters.items() if name.rpartition(".lora_")[0] in alphas}
    return LoraWeights(adapters, alphas)


TEXT_MODULES = [
    r"fc1", r"fc2", r"fc[12]", r"text_projection", r"fc1|text_projection", r"q_proj|fc1", r"k_proj", r"out_proj",
    r"out_proj|fc[12]",
]  # fmt: skip
SOME_MODULES = [
    r"unet\.conv_in", r"unet\.(time|add)_embedding.*", r"unet\..*time_emb_proj", r".*to_q|text_encoder_2.*fc1",
    *(rf"text_encoder.*\.({names})" for names in TEXT_MODULES),
]  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("pattern", SOME_MODULES)
def test_diffusers_recognises_adapters_on_any_modules_alone(pattern, dora, tmp_path):
    lora = part_of(random_lora("sdxl", dora=dora), pattern)
    path = write("peft", tmp_path / "lora.safetensors", lora)
    check_in_diffusers("sdxl", path, lora)
    back = read_lora(path, *structure("sdxl"))
    assert back.adapters.keys() == lora.adapters.keys()


@pytest.mark.parametrize("names", TEXT_MODULES)
def test_what_diffusers_makes_of_a_kohya_file_is_foreseen(names, tmp_path):
    lora = part_of(random_lora("sdxl"), rf"text_encoder_2\..*?({names})")
    path = write("kohya", tmp_path / "lora.safetensors", lora, "sdxl")
    if kohya_is_read([key.partition(".")[2] for key in lora.alphas]):
        check_in_diffusers("sdxl", path, lora)
    else:
        with pytest.raises((ValueError, RuntimeError, AssertionError)):
            check_in_diffusers("sdxl", path, lora)


def test_diffusers_makes_another_model_of_a_dora_in_a_kohya_file(tmp_path):
    lora, weights = random_lora("sd1", dora=True), torch_weights(torch_pipeline("sd1"))
    pipeline = torch_pipeline("sd1")
    pipeline.load_lora_weights(write("kohya", tmp_path / "lora.safetensors", lora))
    pipeline.fuse_lora(components=list(trainable(pipeline)))
    bare = merged(weights, lora._replace(adapters={n: v for n, v in lora.adapters.items() if "magnitude" not in n}))
    for key, value in merged(weights, lora).items():
        found = torch_weights(pipeline)[key]
        np.testing.assert_allclose(found, bare[key], atol=1e-4 * np.abs(found).max())
        assert np.abs(found - value).max() > 0.1


def test_a_reader_that_ignores_the_head_merges_the_same(tmp_path):
    lora = random_lora("sd1")
    save_file(load_file(write("peft", tmp_path / "lora.safetensors", lora)), tmp_path / "bare.safetensors")
    check_in_diffusers("sd1", tmp_path / "bare.safetensors", lora)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_a_lora_that_diffusers_saved_is_read_with_its_scale(rslora, dora, tmp_path):
    pipeline = torch_pipeline("sd1")
    before, trained = torch_weights(pipeline), trainable(pipeline)
    config = functools.partial(peft.LoraConfig, r=4, lora_alpha=6, use_rslora=rslora, use_dora=dora)
    kinds, uneven, start = ["to_q", "to_out.0", "conv1"], {"attn1.to_q": 2}, {"init_lora_weights": False}
    configs = {
        "unet": config(target_modules=kinds, rank_pattern=uneven, alpha_pattern=uneven, **start),
        "text_encoder": config(target_modules=["q_proj", "fc1"], alpha_pattern={r"layers\.1\..*": 3}, **start),
    }
    for name, module in trained.items():
        peft.inject_adapter_in_model(configs[name], module)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        **{f"{name}_lora_layers": peft.get_peft_model_state_dict(module) for name, module in trained.items()},
        **_collate_lora_metadata(trained),
    )
    pipeline.fuse_lora()
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors", *structure("sd1"))
    after, expected = torch_weights(pipeline), merged(before, lora)
    assert len(expected) == 16 * 4 + 22 + 2 * 2  # attention blocks, resnets, text layers
    for key, value in expected.items():
        np.testing.assert_allclose(value, after[key], rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize(("layout", "alphas"), [("peft", None), ("kohya", (3.5, 3.5))])
def test_what_is_written_is_read_bit_for_bit(layout, alphas, family, tmp_path):
    lora = random_lora(family, alphas, dora=True, every=True)
    path = write(layout, tmp_path / "lora.safetensors", lora, family)
    found = read_lora(path, *structure(family))
    assert found.alphas == lora.alphas
    assert found.adapters.keys() == lora.adapters.keys()
    assert all(np.array_equal(value, lora.adapters[name]) for name, value in found.adapters.items())


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_the_written_dtype_is_the_asked_one_but_for_alphas(layout, tmp_path):
    path = write(layout, tmp_path / "lora.safetensors", random_lora("sd1"), dtype=np.dtype(ml_dtypes.bfloat16))
    assert {value.dtype for value in load_file(path).values() if value.ndim} == {np.dtype(ml_dtypes.bfloat16)}
    lora = read_lora(path, *structure("sd1"))
    assert {value.dtype for value in lora.adapters.values()} == {np.dtype(np.float32)}


def test_kohya_names_are_the_published_ones():
    xl = UNetConfig(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    q_proj, proj_in = "encoder.layers.0.self_attn.q_proj", "mid_block.attentions.0.proj_in"
    names = {
        (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ): "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ("unet", "down_blocks.0.downsamplers.0.conv"): "lora_unet_input_blocks_3_0_op",
        ("unet", "up_blocks.0.upsamplers.0.conv"): "lora_unet_output_blocks_2_2_conv",
        ("unet", "mid_block.resnets.1.time_emb_proj"): "lora_unet_middle_block_2_emb_layers_1",
        ("text_encoder", q_proj): "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        ("text_encoder_2", q_proj): "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
    }
    assert {key: kohya_name(*key, xl) for key in names} == names
    names = [kohya_name(*key, UNetConfig()) for key in (("unet", proj_in), ("text_encoder", q_proj))]
    assert names == ["lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"]


def test_the_kohya_file_says_what_it_is(tmp_path):
    path = write("kohya", tmp_path / "lora.safetensors", random_lora("sdxl", (3.5, 3.5), dora=True), "sdxl")
    head, tensors = safe_open(path, framework="np").metadata(), load_file(path)
    assert (head["ss_base_model_version"], head["ss_network_alpha"], head["step"]) == ("sdxl_base_v1-0", "3.5", "7")
    assert head["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert head["ss_network_dim"] == "Dynamic"  # two ranks
    assert tensors["lora_unet_input_blocks_0_0.dora_scale"].shape == (32, 1, 1, 1)  # broadcasts over torch's OIHW
    assert tensors["lora_unet_time_embed_0.dora_scale"].shape == (128, 1)
