"""LoRA files of other trainers for flow transformers: what diffusers' converters make of them, jaxbooth does."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as convert
from safetensors.numpy import save_file

from jaxbooth.errors import UserError
from jaxbooth.weights.lora.adapters import Adapter, to_adapters
from jaxbooth.weights.lora.read import read_lora
from tests.lora_files import structure

# Module -> (inputs, outputs) in the transformers of tests/flow_models.py
Z_IMAGE = {"layers.0.attention.to_q": (32, 32), "context_refiner.0.attention.to_out.0": (32, 32),
           "noise_refiner.0.feed_forward.w1": (32, 85), "layers.1.adaLN_modulation.0": (32, 128)}  # fmt: skip
KLEIN = {"double_blocks.0.img_attn.qkv": (32, 96), "double_blocks.0.txt_attn.qkv": (32, 96),
         "double_blocks.0.img_attn.proj": (32, 32), "double_blocks.0.txt_attn.proj": (32, 32),
         "double_blocks.0.img_mlp.0": (32, 128), "double_blocks.0.txt_mlp.2": (64, 32),
         "single_blocks.0.linear1": (32, 224), "single_blocks.1.linear2": (96, 32), "img_in": (16, 32),
         "final_layer.linear": (32, 16)}  # fmt: skip
Sizes = Mapping[str, tuple[int, int]]
Tensors = dict[str, np.ndarray]


def pairs(sizes: Sizes, down: str, up: str) -> Tensors:
    """Random adapters of rank 4."""
    rng, tensors = np.random.default_rng(0), {}
    for name, (inputs, outputs) in sizes.items():
        tensors[f"{name}.{down}.weight"] = rng.normal(size=(4, inputs)).astype("f4")
        tensors[f"{name}.{up}.weight"] = rng.normal(size=(outputs, 4)).astype("f4")
    return tensors


def ai_toolkit(sizes: Sizes) -> Tensors:
    """Dotted names, and alpha = rank."""
    return pairs({f"diffusion_model.{name}": size for name, size in sizes.items()}, "lora_A", "lora_B")


def musubi_tuner(sizes: Sizes) -> Tensors:
    """kohya's names, and alphas."""
    names = {name: f"lora_unet_{name.replace('.', '_')}" for name in sizes}
    alphas = {f"{name}.alpha": np.asarray(1.5, "f4") for name in names.values()}
    return pairs({names[name]: size for name, size in sizes.items()}, "lora_down", "lora_up") | alphas


def block_diagonal(sizes: Sizes) -> Tensors:
    """Joined projections whose adapters were trained apart: three of rank 4 are one of rank 12."""
    tensors = musubi_tuner({name: size for name, size in sizes.items() if "qkv" in name})
    for name, value in tensors.items():
        if name.endswith("lora_down.weight"):
            tensors[name] = np.concatenate([value, 2 * value, -value])
        if name.endswith("lora_up.weight"):
            tensors[name] = np.tile(value, 3) * np.kron(np.eye(3, dtype="f4"), np.ones((32, 4), "f4"))
    return tensors


TO_DIFFUSERS = {
    "zimage": convert._convert_non_diffusers_z_image_lora_to_diffusers,
    "klein": convert._convert_non_diffusers_flux2_lora_to_diffusers,
    "klein, kohya's names": convert._convert_kohya_flux2_lora_to_diffusers,
}
FILES = {
    "Z-Image, ai-toolkit": ("zimage", ai_toolkit(Z_IMAGE), TO_DIFFUSERS["zimage"]),
    "Z-Image, musubi-tuner": ("zimage", musubi_tuner(Z_IMAGE), TO_DIFFUSERS["zimage"]),
    "klein, ai-toolkit": ("klein", ai_toolkit(KLEIN), TO_DIFFUSERS["klein"]),
    "klein, musubi-tuner": ("klein", musubi_tuner(KLEIN), TO_DIFFUSERS["klein, kohya's names"]),
    "klein, block-diagonal": ("klein", block_diagonal(KLEIN), TO_DIFFUSERS["klein, kohya's names"]),
}


def read(tensors: Tensors, family: str, folder) -> dict[str, Adapter]:
    """Writes a file, and reads its adapters by the names of their layers."""
    save_file(tensors, folder / "lora.safetensors")
    lora = read_lora(folder / "lora.safetensors", *structure(family))
    return {adapter.module: adapter for adapter in to_adapters(lora)}


@pytest.mark.parametrize("file", FILES)
def test_files_of_other_trainers_mean_what_diffusers_makes_of_them(file, tmp_path):
    family, tensors, converter = FILES[file]
    adapters = read(tensors, family, tmp_path)
    converted = converter({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    assert {re.split(r"\.lora_", name)[0] for name in converted} == {f"transformer.{name}" for name in adapters}
    for name, adapter in adapters.items():
        down, up = (converted[f"transformer.{name}.lora_{letter}.weight"].numpy() for letter in "AB")
        assert adapter.lora_a.shape == down.shape  # the rank of a block, or the shared one
        change = adapter.alpha / adapter.rank * adapter.lora_b @ adapter.lora_a
        # they multiply alpha / rank into A
        np.testing.assert_allclose(change, up @ down, rtol=0, atol=2e-6 * np.abs(change).max())


def test_joined_projections_in_the_names_of_z_images_authors_are_split(tmp_path):
    sizes = {"diffusion_model.layers.0.attention.qkv": (32, 96), "lora_unet_layers_1_attention_out": (32, 32)}
    tensors = pairs(sizes, "lora_down", "lora_up")
    adapters = read(tensors, "zimage", tmp_path)
    assert sorted(adapters) == [*(f"layers.0.attention.to_{letter}" for letter in "kqv"), "layers.1.attention.to_out.0"]
    up = tensors["diffusion_model.layers.0.attention.qkv.lora_up.weight"]
    np.testing.assert_array_equal(adapters["layers.0.attention.to_k"].lora_b, up[32:64])


SPELLINGS = [
    "transformer.{}.lora_A.weight", "{}.lora_A.weight", "diffusion_model.{}.lora_down.weight",
    "base_model.model.{}.lora_A.weight", "transformer.{}.lora_A.default.weight", "transformer.{}.lora_down.weight",
    *(f"{prefix}_{{}}.lora_down.weight" for prefix in ("lora_unet", "lora_transformer", "lycoris")),
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("layer", ["single_transformer_blocks.1.attn.to_out", "single_blocks.1.linear2"])
def test_a_layer_is_known_by_every_spelling(layer, spelling, tmp_path):
    down = spelling.format(layer.replace(".", "_") if "_{}" in spelling else layer)
    up = down.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
    adapters = read({down: np.ones((2, 96), "f4"), up: np.ones((32, 2), "f4")}, "klein", tmp_path)
    assert {name: adapter.alpha for name, adapter in adapters.items()} == {"single_transformer_blocks.1.attn.to_out": 2}


# The base model, a module in the file, its inputs, and what the message says
REFUSED = [
    ("klein", "transformer.single_transformer_blocks.0.attn.to_q", 3072, "for FLUX.1"),
    ("klein", "diffusion_model.double_blocks.18.img_attn.qkv", 3072, "for FLUX.1"),
    ("klein", "lora_unet_double_blocks_0_img_mod_lin", 3072, "for FLUX.1"),
    ("klein", "diffusion_model.double_blocks.0.img_attn.qkv", 4096, "for FLUX.2 klein 9B"),
    ("zimage", "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, "for FLUX.2 klein 4B"),
    ("klein", "lora_unet_double_blocks_7_txt_attn_qkv", 6144, "for FLUX.2 dev"),
    ("klein", "transformer_blocks.0.img_mlp.net.0.proj", 3072, "for Qwen-Image"),
    ("klein", "transformer.transformer_blocks.20.attn.add_k_proj", 1536, "for Stable Diffusion 3.5 medium"),
    ("zimage", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048, "for SDXL"),
    ("klein", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 768, "for SD 1.x"),
    ("klein", "diffusion_model.layers.0.attention.to_q", 3840, "for Z-Image"),
    ("klein", "lora_unet_layers_0_attention_to_q", 3840, "for Z-Image"),
    ("sd1", "diffusion_model.layers.0.attention.to_q", 3840, "for Z-Image"),
    ("zimage", "layers.0.attn.to_q", 2304, "for Lumina 2"),
    ("zimage", "layers.0.attention.to_q", 3840, r"\(4, 3840\), but this base model asks for \(4, 32\).* for Z-Image"),
]


@pytest.mark.parametrize(("family", "module", "inputs", "said"), REFUSED)
def test_a_lora_of_another_model_is_refused_by_name(family, module, inputs, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read(pairs({module: (inputs, 32)}, "lora_A", "lora_B"), family, tmp_path)


def test_another_kind_of_adapter_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="OFT is not supported"):
        read({"diffusion_model.double_blocks.0.img_attn.qkv.oft_blocks": np.ones((2, 2), "f4")}, "klein", tmp_path)


def test_a_layer_under_its_own_name_and_in_joined_projections_is_refused(tmp_path):
    sizes = {"transformer.layers.0.attention.to_q": (32, 32), "layers.0.attention.qkv": (32, 96)}
    with pytest.raises(UserError, match=r"holds transformer\.layers\.0\.attention\.to_q twice"):
        read(pairs(sizes, "lora_A", "lora_B"), "zimage", tmp_path)
