"""LoRA files of flow transformers: diffusers and jaxbooth read the same weights out of every layout."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import peft
import pytest
from diffusers.training_utils import _collate_lora_metadata
from safetensors.numpy import load_file

from jaxbooth.models.config import read_config
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.weights.architectures import PUBLISHED
from jaxbooth.weights.denoiser_file.names import FLUX2, Z_IMAGE
from jaxbooth.weights.lora.adapters import LoraWeights, to_adapters
from jaxbooth.weights.lora.metadata import transformer_metadata
from jaxbooth.weights.lora.names import adaptable_layers
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.lora.write import can_join
from tests.flow_models import FLOW_FAMILIES, denoiser_config
from tests.lora_files import merged, random_lora, structure, torch_pipeline, torch_weights, write

MISREAD = "transformer.norm_out.linear"  # of klein: diffusers leaves its halves in the order that ComfyUI has


def without(lora: LoraWeights, *layers: str) -> LoraWeights:
    return LoraWeights(
        {name: value for name, value in lora.adapters.items() if name.rpartition(".lora_")[0] not in layers},
        {key: alpha for key, alpha in lora.alphas.items() if key not in layers},
    )


def check_in_diffusers(family: str, path: Path, lora: LoraWeights) -> None:
    """What diffusers merges into a pipeline from the file is what the LoRA says."""
    pipeline = torch_pipeline(family)
    before = torch_weights(pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    after, expected = torch_weights(pipeline), merged(before, lora)
    changed = {key for key, value in before.items() if not np.array_equal(value, after[key])}
    assert changed == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(after[key], value, rtol=0, atol=1e-5 * np.abs(value).max())  # float32 sums


def check_equal(found: LoraWeights, lora: LoraWeights) -> None:
    """Both change all weights alike, and have the same ranks."""
    expected = {adapter.module: adapter for adapter in to_adapters(lora)}
    assert {adapter.module for adapter in to_adapters(found)} == expected.keys()
    for adapter in to_adapters(found):
        other = expected[adapter.module]
        assert adapter.rank == other.rank
        change, same = (a.alpha / a.rank * a.lora_b @ a.lora_a for a in (adapter, other))
        np.testing.assert_allclose(change, same, rtol=0, atol=1e-6 * np.abs(same).max())  # alpha / rank in float32
        if other.magnitude is not None:
            np.testing.assert_array_equal(adapter.magnitude, other.magnitude)


BLOCK = ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
STREAMS = ["ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"]
PRESETS = {
    ("zimage", "attention"): (["to_q", "to_k", "to_v", "to_out.0"], 4 * 4),  # two layers, a refiner of each kind
    ("zimage", "attention+ff"): (["to_q", "to_k", "to_v", "to_out.0", *BLOCK], 4 * 7),
    ("klein", "attention"): (
        ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj",
         "single_transformer_blocks.0.attn.to_out", "single_transformer_blocks.1.attn.to_out"],
        8 + 2 * 2,
    ),
    ("klein", "attention+ff"): (
        ["attn.to_q", "attn.to_k", "attn.to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
         "to_qkv_mlp_proj", "single_transformer_blocks.0.attn.to_out", "single_transformer_blocks.1.attn.to_out",
         *STREAMS],
        8 + 4 + 2 * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_presets_are_the_layers_that_peft_finds_by_the_ends_of_their_names(family, preset):
    ends, count = PRESETS[family, preset]
    network = structure(family)[0]["transformer"]
    layers = target_layers(network, "transformer", preset)
    found = [layer for layer in adaptable_layers(network) if any(f".{layer}".endswith(f".{end}") for end in ends)]
    assert layers == sorted(found)
    assert len(layers) == count
    if preset == "attention+ff":
        assert target_layers(network, "transformer", "attention+ff+conv") == layers  # there are no convolutions


def test_a_regex_names_layers_of_the_transformer():
    network = structure("zimage")[0]["transformer"]
    assert target_layers(network, "transformer", r"transformer\.layers\.1\..*\.to_[kv]") == [
        "layers.1.attention.to_k", "layers.1.attention.to_v"
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["peft", "comfyui"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_merges_what_was_trained(family, layout, tmp_path):
    lora = random_lora(family, every=True)
    lora = without(lora, MISREAD) if layout == "comfyui" else lora
    check_in_diffusers(family, write(layout, tmp_path / "lora.safetensors", lora, family), lora)


def test_diffusers_leaves_the_halves_of_the_last_modulation_as_comfyui_has_them(tmp_path):
    lora = random_lora("klein", every=True)
    lora = without(lora, *(key for key in lora.alphas if key != MISREAD))
    pipeline = torch_pipeline("klein")
    before = torch_weights(pipeline)[MISREAD]
    expected = merged({MISREAD: before}, lora)[MISREAD] - before
    pipeline.load_lora_weights(write("comfyui", tmp_path / "lora.safetensors", lora, "klein"))
    pipeline.fuse_lora()
    found = torch_weights(pipeline)[MISREAD] - before
    np.testing.assert_allclose(found, np.roll(expected, len(expected) // 2, axis=0), atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_merges_dora_from_the_peft_file(family, tmp_path):
    lora = random_lora(family, dora=True, every=True)
    check_in_diffusers(family, write("peft", tmp_path / "lora.safetensors", lora, family), lora)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", ["peft", "comfyui"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_what_is_written_is_read(family, layout, dora, tmp_path):
    lora = random_lora(family, dora=dora, every=True)
    path = write(layout, tmp_path / "lora.safetensors", lora, family)
    check_equal(read_lora(path, *structure(family)), lora)


@pytest.mark.parametrize("layout", ["peft", "comfyui"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_alphas_of_the_rank_are_read_bit_for_bit(family, layout, tmp_path):
    lora = random_lora(family, None, dora=True, every=True)
    path = write(layout, tmp_path / "lora.safetensors", lora, family, np.dtype(np.float32))
    found = read_lora(path, *structure(family))
    assert found.alphas == lora.alphas
    assert found.adapters.keys() == lora.adapters.keys()
    assert all(np.array_equal(value, lora.adapters[name]) for name, value in found.adapters.items())


def test_comfyui_finds_the_layers_of_z_image_by_the_names_of_diffusers(tmp_path):
    lora = random_lora("zimage", dora=True, every=True)
    tensors = load_file(write("comfyui", tmp_path / "lora.safetensors", lora, "zimage"))
    layer = "diffusion_model.layers.1.attention.to_q"
    assert tensors[f"{layer}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{layer}.alpha"] == 6
    assert tensors[f"{layer}.dora_scale"].shape == (32, 1)
    assert "diffusion_model.context_refiner.0.feed_forward.w2.lora_B.weight" in tensors


def test_comfyui_finds_the_layers_of_flux2_by_the_names_of_its_release(tmp_path):
    lora = random_lora("klein", every=True)
    tensors = load_file(write("comfyui", tmp_path / "lora.safetensors", lora, "klein"))
    assert not any(name.endswith("alpha") for name in tensors)
    shapes = {name.removesuffix(".lora_B.weight"): value.shape for name, value in tensors.items() if "lora_B" in name}
    assert shapes["diffusion_model.double_blocks.0.txt_attn.qkv"] == (96, 12)  # three of rank 4
    assert shapes["diffusion_model.single_blocks.1.linear1"] == (3 * 32 + 2 * 64, 4)
    assert shapes["diffusion_model.double_blocks.0.img_mlp.0"] == (2 * 64, 2)
    blocks = tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"].reshape(3, 32, 3, 4)
    assert (np.abs(blocks).max(axis=(1, 3)) > 0).tolist() == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("targets", ["to_q", "to_[qv]", r"to_k|add_v_proj"])
def test_a_lora_of_some_of_the_fused_layers_comes_back(targets, tmp_path):
    lora = random_lora("klein", every=True)
    lora = without(lora, *(key for key in lora.alphas if not re.search(rf"\.({targets})$", key)))
    path = write("comfyui", tmp_path / "lora.safetensors", lora, "klein")
    check_equal(read_lora(path, *structure("klein")), lora)


def test_a_dora_of_some_of_the_fused_layers_has_no_file_for_comfyui():
    denoiser = structure("klein")[0]["transformer"]
    lora = random_lora("klein", dora=True, every=True)
    assert can_join(lora, denoiser, FLUX2)
    lora = without(lora, "transformer.transformer_blocks.0.attn.to_q")
    assert not can_join(lora, denoiser, FLUX2)
    assert can_join(lora, denoiser, Z_IMAGE)  # ComfyUI knows its layers by the names of diffusers


def test_the_written_dtype_is_the_asked_one_but_for_alphas(tmp_path):
    lora, dtype = random_lora("zimage", every=True), np.dtype(ml_dtypes.bfloat16)
    path = write("comfyui", tmp_path / "lora.safetensors", lora, "zimage", dtype)
    dtypes = {name.rpartition(".")[2]: value.dtype for name, value in load_file(path).items()}
    assert dtypes == {"weight": np.dtype(ml_dtypes.bfloat16), "alpha": np.dtype(np.float32)}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_lora_that_diffusers_saved_is_read_with_its_scale(family, dora, rslora, tmp_path):
    pipeline = torch_pipeline(family)
    before = torch_weights(pipeline)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, use_dora=dora, init_lora_weights=False,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"],
        rank_pattern={"to_k": 2}, alpha_pattern={"to_v": 3},
    )  # fmt: skip
    pipeline.transformer.add_adapter(config)
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(pipeline.transformer),
        **_collate_lora_metadata({"transformer": pipeline.transformer}),
    )
    pipeline.fuse_lora()
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors", *structure(family))
    after = torch_weights(pipeline)
    expected = merged(before, lora)
    assert len(expected) == {"zimage": 4 * 4, "klein": 4 + 2}[family]
    for key, value in expected.items():
        np.testing.assert_allclose(value, after[key], rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize(
    ("published", "version", "architecture"),
    [("zimage", "zimage", "Z-Image/lora"), ("klein-4b", "flux2_klein_4b", "Flux.2-klein-4b/lora"),
     ("klein-9b", "flux2_klein_9b", "Flux.2-klein-9b/lora")],
)  # fmt: skip
def test_the_file_for_comfyui_says_what_it_is_in_the_words_of_other_trainers(published, version, architecture):
    source = PUBLISHED[published].folder / "transformer" / "config.json"
    config = read_config(PUBLISHED[published].family.denoiser.config, json.loads(source.read_text()), str(source))
    metadata = transformer_metadata(config, [16, 48])
    assert metadata["ss_base_model_version"] == version
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["ss_network_dim"] == "Dynamic"


def test_a_small_base_model_is_no_published_one():
    assert transformer_metadata(denoiser_config("klein"), [4]) == {"ss_network_dim": "4"}
