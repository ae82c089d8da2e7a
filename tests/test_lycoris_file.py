"""Files of LoHa and LoKr: what is written is read, also by diffusers, and what does not fit is refused."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxbooth.errors import UserError
from jaxbooth.export.written_model import change
from jaxbooth.models.adapter_kinds import LoraSpec
from jaxbooth.models.lora import layer_parts, lora_shapes
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.names import adaptable_layers
from jaxbooth.weights.lora.peft_lokr import peft_factor, write_peft_lokr
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.lora.write_lycoris import write_lycoris
from tests.flow_models import FLOW_FAMILIES
from tests.lora_files import ONE_OF_EACH_KIND, UNETS, structure, torch_pipeline, torch_weights

SPECS = {"loha": LoraSpec(3, 0.5, "loha"), "lokr": LoraSpec(1, 0.5, "lokr"), "lokr-whole": LoraSpec(64, 0.5, "lokr")}
TO_OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"  # 64 to 64
KOHYA = f"lora_unet_{TO_OUT.replace('.', '_')}"


def random_lycoris(family: str, spec: LoraSpec, alpha: float = 1.5) -> LoraWeights:
    rng, lora = np.random.default_rng(0), LoraWeights({}, {})
    for component, network in structure(family)[0].items():
        layers = adaptable_layers(network)
        if family in UNETS:
            layers = [layer for layer in layers if ONE_OF_EACH_KIND.fullmatch(layer)]
        for name, leaf in lora_shapes(network, layers, spec).items():
            lora.adapters[f"{component}.{name}"] = rng.normal(size=leaf.shape).astype(np.float32)
        lora.alphas.update({f"{component}.{layer}": alpha for layer in layers})
    return lora


def scaled_change(lora: LoraWeights, key: str) -> np.ndarray:
    """What a layer's adapter adds to its kernel, float64."""
    parts = layer_parts(lora.adapters, key)
    rank = next((v.shape[-1] for part, v in parts.items() if part in ("hada_w1_b.kernel", "lokr_w2_b.kernel")), None)
    return (lora.alphas[key] / rank if rank else 1) * change({p: v.astype(np.float64) for p, v in parts.items()})


def check_equal(found: LoraWeights, expected: LoraWeights) -> None:
    assert found.alphas == expected.alphas
    assert found.adapters.keys() == expected.adapters.keys()
    assert all(np.array_equal(value, expected.adapters[name]) for name, value in found.adapters.items())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("family", [*UNETS, *FLOW_FAMILIES])
def test_what_is_written_is_read_bit_for_bit(family, name, tmp_path):
    lora, path = random_lycoris(family, SPECS[name]), tmp_path / "lora.safetensors"
    networks, config = structure(family)
    assert write_lycoris(path, lora, networks, config, {}) == len(load_file(path))
    check_equal(read_lora(path, networks, config), lora)


@pytest.mark.parametrize("name", ["lokr", "lokr-whole"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_merges_a_lokr_of_a_flow_transformer(family, name, tmp_path):
    check_merged_by_diffusers(family, random_lycoris(family, SPECS[name]), tmp_path)


def check_merged_by_diffusers(family: str, lora: LoraWeights, tmp_path) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_peft_lokr(path, lora, {})
    pipeline = torch_pipeline(family)
    before = torch_weights(pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["transformer"])
    after = torch_weights(pipeline)
    for key in lora.alphas:
        expected = before[key] + scaled_change(lora, key).T
        np.testing.assert_allclose(after[key], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8, 16, 30, 64])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_it_is_known_which_lokr_diffusers_reads(family, factor, tmp_path):
    lora = random_lycoris(family, LoraSpec(1, 0.5, "lokr", factor))
    if peft_factor(lora) is not None:
        check_merged_by_diffusers(family, lora, tmp_path)
        return
    write_peft_lokr(tmp_path / "lokr.safetensors", lora, {})
    with pytest.raises(ValueError, match="Could not infer a `decompose_factor`"):
        torch_pipeline(family).load_lora_weights(tmp_path / "lokr.safetensors")


def test_the_file_for_comfyui_has_lycoris_names_and_shapes(tmp_path):
    networks, config = structure("sd1")
    path = tmp_path / "lora.safetensors"
    write_lycoris(path, random_lycoris("sd1", SPECS["loha"]), networks, config, {})
    tensors = load_file(path)
    shapes = {
        name.removeprefix("lora_unet_conv_in."): value.shape for name, value in tensors.items() if "conv_in" in name
    }
    assert shapes == {
        "hada_w1_a": (32, 3), "hada_w1_b": (3, 4 * 9), "hada_w2_a": (32, 3), "hada_w2_b": (3, 4 * 9), "alpha": (),
    }  # fmt: skip
    with safe_open(path, "np") as file:
        head = file.metadata()
    assert head["ss_network_module"] == "lycoris.kohya"
    assert json.loads(head["ss_network_args"]) == {"algo": "loha"}


def test_comfyui_finds_the_layers_of_flux2_one_by_one(tmp_path):
    networks, config = structure("klein")
    path = tmp_path / "lora.safetensors"
    write_lycoris(path, random_lycoris("klein", SPECS["lokr"]), networks, config, {})
    modules = {name.rpartition(".")[0] for name in load_file(path)}
    assert "transformer.transformer_blocks.0.attn.to_q" in modules  # a part of img_attn.qkv
    assert "diffusion_model.double_blocks.0.img_attn.proj" in modules
    assert "diffusion_model.single_blocks.1.linear1" in modules


def read(tensors: dict, tmp_path, family: str = "sd1") -> LoraWeights:
    path = tmp_path / "file.safetensors"
    save_file({name: np.ascontiguousarray(np.asarray(value, np.float32)) for name, value in tensors.items()}, path)
    return read_lora(path, *structure(family))


def test_tucker_cores_are_read_exactly(rng, tmp_path):
    up, down, core = rng.normal(size=(2, 32)), rng.normal(size=(2, 4)), rng.normal(size=(2, 2, 3, 3))
    name = "lora_unet_conv_in"
    tensors = {f"{name}.hada_w{i}_{end}": value for i in "12" for end, value in (("a", up), ("b", down))}
    lora = read(tensors | {f"{name}.hada_t1": core, f"{name}.hada_t2": core, f"{name}.alpha": 1.0}, tmp_path)
    half = np.einsum("ijxy,jn,ip->xynp", core, down, up)  # LyCORIS `HadaWeightTucker`
    np.testing.assert_allclose(scaled_change(lora, "unet.conv_in"), 0.5 * half * half, rtol=1e-4, atol=1e-4)
    w1 = rng.normal(size=(4, 2))
    tensors = {"lokr_w1": w1, "lokr_w2_a": up[:, :8], "lokr_w2_b": down[:, :2], "lokr_t2": core, "alpha": 1.0}
    lora = read({f"{name}.{end}": value for end, value in tensors.items()}, tmp_path)
    w2 = np.einsum("ijxy,ip,jn->pnxy", core, up[:, :8], down[:, :2])  # LyCORIS `rebuild_tucker`
    expected = 0.5 * np.kron(w1[..., None, None], w2).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(scaled_change(lora, "unet.conv_in"), expected, rtol=1e-4, atol=1e-4)


def test_a_first_factor_of_low_rank_is_read_exactly(rng, tmp_path):
    a, b, w2 = rng.normal(size=(8, 2)), rng.normal(size=(2, 8)), rng.normal(size=(8, 8))
    tensors = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2": w2, "alpha": 5.0}
    lora = read({f"{KOHYA}.{end}": value for end, value in tensors.items()}, tmp_path)
    np.testing.assert_allclose(scaled_change(lora, f"unet.{TO_OUT}"), np.kron(2.5 * a @ b, w2).T, rtol=1e-4, atol=1e-4)


def test_the_layers_of_a_fused_matrix_share_the_groups_of_a_lokr(rng, tmp_path):
    w1, w2 = rng.normal(size=(6, 4)), rng.normal(size=(16, 8))  # 96 outputs, 32 of each layer
    fused = {"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": w1,
             "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w2": w2}  # fmt: skip
    lora = read(fused, tmp_path, "klein")
    for index, layer in enumerate(("to_q", "to_k", "to_v")):
        found = scaled_change(lora, f"transformer.transformer_blocks.0.attn.{layer}")
        np.testing.assert_allclose(found, np.kron(w1, w2)[32 * index : 32 * index + 32].T, rtol=1e-5, atol=1e-5)


def test_groups_that_go_across_layers_are_refused(rng, tmp_path):
    fused = {"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": rng.normal(size=(4, 4)),
             "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w2": rng.normal(size=(24, 8))}  # fmt: skip
    with pytest.raises(UserError, match=r"groups of its LoKr go across .*attn.to_q and .*to_k and .*to_v"):
        read(fused, tmp_path, "klein")


BAD = {
    r"its LoKr makes a matrix of 60 x 64, but this base model asks for 64 x 64": {
        "lokr_w1": (10, 8), "lokr_w2": (6, 8)},
    r"its LoKr makes a matrix of 64 x 72": {"lokr_w1": (8, 8), "lokr_w2": (8, 9)},
    r"its LoHa makes a matrix of 64 x 36": {
        "hada_w1_a": (64, 2), "hada_w1_b": (2, 36), "hada_w2_a": (64, 2), "hada_w2_b": (2, 36)},
    r"factors of its LoKr do not fit each other": {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)},
    r"a factor of its LoKr is no matrix": {"lokr_w1": (64,), "lokr_w2": (8, 8)},
    r"has no lokr_w2_b matrix": {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2)},
    r"DoRA's magnitudes .dora_scale. is not supported": {"lokr_w1": (8, 8), "lokr_w2": (8, 8), "dora_scale": (64, 1)},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_factors_that_do_not_fit_are_refused(message, tmp_path):
    with pytest.raises(UserError, match=message):
        read({f"{KOHYA}.{end}": np.ones(shape) for end, shape in BAD[message].items()}, tmp_path)


def test_two_kinds_in_one_file_are_refused(tmp_path):
    tensors = {f"{KOHYA}.lokr_w1": np.ones((8, 8)), f"{KOHYA}.lokr_w2": np.ones((8, 8)),
               "lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3)),
               "lora_unet_conv_in.lora_up.weight": np.ones((32, 2, 1, 1))}  # fmt: skip
    with pytest.raises(UserError, match="holds LoKr and LoRA together"):
        read(tensors, tmp_path)
