"""LoRA files: diffusers computes the weights that jaxbooth trained, and files come back as they were written."""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import diffusers
import jax
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from diffusers.training_utils import _collate_lora_metadata
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxbooth.errors import UserError
from jaxbooth.export.lora import kohya_is_read
from jaxbooth.models.config import UNetConfig, read_config
from jaxbooth.params import ModuleDef
from jaxbooth.weights.lora.adapters import LoraWeights, to_adapters
from jaxbooth.weights.lora.names import LORA_COMPONENTS, kohya_name
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.lora.write import write_kohya, write_peft
from jaxbooth.weights.names import import_axes
from tests.test_models import SD1, SD2, SDXL

UNETS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
TEXT = {
    "vocab_size": 99, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "projection_dim": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
ONE_OF_EACH_KIND = re.compile(
    r"conv_in|conv_out|(time|add)_embedding\.linear_[12]|text_projection|encoder\.layers\.1\..*|"
    r"(down_blocks\.1|mid_block|up_blocks\.1)\.((down|up)samplers\.0\.conv|resnets\.1\.(conv.*|time_emb_proj)|"
    r"attentions\.0\.(proj_in|proj_out|transformer_blocks\.0\.(attn1\.to_(q|out\.0)|attn2\.to_k|ff\.net\.(0\.proj|2))))"
)


def torch_pipeline(family: str) -> diffusers.DiffusionPipeline:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**TEXT)
    parts = {"vae": None, "tokenizer": None, "scheduler": None, "text_encoder": transformers.CLIPTextModel(config)}
    parts["unet"] = diffusers.UNet2DConditionModel(**UNETS[family])
    if family == "sdxl":
        second = transformers.CLIPTextModelWithProjection(config)
        return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=None)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@functools.cache
def structure(family: str) -> tuple[dict[str, ModuleDef], UNetConfig]:
    """The networks' kernels as PyTorch has them (tests/test_models.py holds the two sets of names equal)."""
    networks = {}
    for component, module in trainable(torch_pipeline(family)).items():
        kernels = {
            f"{name.removeprefix('text_model.')}.kernel": layer.weight
            for name, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        }
        shapes = {
            name: jax.ShapeDtypeStruct([weight.shape[axis] for axis in import_axes(name, weight.ndim)], np.float32)
            for name, weight in kernels.items()
        }
        networks[component] = ModuleDef(None, {}, shapes)
    return networks, read_config(UNetConfig, UNETS[family], "unet/config.json")


def trainable(pipeline: diffusers.DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: getattr(pipeline, name) for name in LORA_COMPONENTS if hasattr(pipeline, name)}


def random_lora(
    family: str, alphas: tuple[float, float] | None = (6.0, 3.0), dora: bool = False, every: bool = False
) -> LoraWeights:
    """Rank 4 in attention (and text_projection: diffusers wants it), 2 elsewhere; so the alphas, None is the rank."""
    rng, lora = np.random.default_rng(0), LoraWeights({}, {})
    for component, network in structure(family)[0].items():
        for name, leaf in network.shapes.items():
            module = name.removesuffix(".kernel")
            if module == name or not (every or ONE_OF_EACH_KIND.fullmatch(module)):
                continue
            *window, inputs, outputs = leaf.shape
            key, rank = f"{component}.{module}", 4 if re.search("attn|text_projection", name) else 2
            shapes = {"lora_A.kernel": (*window, inputs, rank), "lora_B.kernel": (*(1 for _ in window), rank, outputs)}
            lora.adapters.update({f"{key}.{n}": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
            if dora:
                lora.adapters[f"{key}.lora_magnitude_vector.scale"] = rng.uniform(1, 2, outputs).astype(np.float32)
            lora.alphas[key] = alphas["attn" not in name] if alphas else float(rank)
    return lora


def torch_weights(pipeline: diffusers.DiffusionPipeline) -> dict[str, np.ndarray]:
    """Every weight by jaxbooth's module names, whatever PEFT put around it."""
    found = {}
    for component, module in trainable(pipeline).items():
        for name, value in module.state_dict().items():
            plain = name.replace(".base_layer", "").removeprefix("text_model.").removesuffix(".weight")
            found[f"{component}.{plain}"] = value.detach().numpy().copy()
    return found


def merged(weights: dict[str, np.ndarray], lora: LoraWeights) -> dict[str, np.ndarray]:
    """W + alpha / rank * B A in torch's layout; DoRA scales each output to its magnitude (arXiv 2402.09353, eq. 5)."""
    found = {}
    for adapter in to_adapters(lora):
        key = f"{adapter.component}.{adapter.module}"
        product = np.tensordot(adapter.lora_b.reshape(len(adapter.lora_b), -1), adapter.lora_a, 1)
        total = weights[key] + adapter.alpha / adapter.rank * product
        if adapter.magnitude is not None:
            norms = np.linalg.norm(total.reshape(len(total), -1), axis=1)
            total *= (adapter.magnitude / norms).reshape(-1, *(1 for _ in total.shape[1:]))
        found[key] = total
    return found


def check_in_diffusers(family: str, path: Path, lora: LoraWeights) -> None:
    pipeline = torch_pipeline(family)
    before = torch_weights(pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=list(trainable(pipeline)))
    after, expected = torch_weights(pipeline), merged(before, lora)
    for key, value in before.items():
        np.testing.assert_allclose(after[key], expected.get(key, value), rtol=0, atol=1e-5 * np.abs(after[key]).max())
    assert set(expected) == {key for key, value in before.items() if not np.array_equal(value, after[key])}


def write(layout: str, path: Path, lora: LoraWeights, family: str = "sd1", dtype: np.dtype | None = None) -> Path:
    writers = {"peft": lambda: write_peft(path, lora, {"step": "7"}, dtype),
               "kohya": lambda: write_kohya(path, lora, structure(family)[1], {"step": "7"}, dtype)}  # fmt: skip
    assert writers[layout]() == len(load_file(path))
    return path


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


BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
PEFT = f"unet.{BLOCK}.to_out.0.lora_{{}}.weight"
SPELLINGS = [
    (f"{BLOCK}.to_out.0.lora_{{}}.weight", "AB"),
    (f"unet.{BLOCK}.to_out.0.lora.{{}}.weight", ("down", "up")),
    (f"unet.{BLOCK}.processor.to_out_lora.{{}}.weight", ("down", "up")),
    (f"lora_unet_{BLOCK.replace('.', '_')}_to_out_0.lora_{{}}.weight", ("down", "up")),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0.lora_{}.weight", ("down", "up")),
]
DOWN, UP = np.arange(256, dtype=np.float32).reshape(4, 64), np.ones((64, 4), np.float32)


def pair(name: str, words: Iterable[str] = "AB", down: np.ndarray = DOWN) -> dict[str, np.ndarray]:
    return dict(zip((name.format(word) for word in words), (down, UP), strict=True))


@pytest.mark.parametrize(("name", "words"), SPELLINGS)
def test_other_spellings_of_a_module_are_understood(name, words, tmp_path):
    save_file(pair(name, words), tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", *structure("sd1"))
    assert lora.alphas == {f"unet.{BLOCK}.to_out.0": 4.0}  # the rank, where nothing says otherwise
    assert np.array_equal(lora.adapters[f"unet.{BLOCK}.to_out.0.lora_A.kernel"], DOWN.T)


@pytest.mark.parametrize(("extra", "alpha"), [({}, 9.0), ({f"unet.{BLOCK}.to_out.0.alpha": np.array(2.0)}, 2.0)])
def test_an_alpha_tensor_comes_before_the_head(extra, alpha, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(pair(PEFT) | extra, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 9})})
    assert list(read_lora(path, *structure("sd1")).alphas.values()) == [alpha]


@pytest.mark.parametrize("alpha", [1e308, -1e39, 1e-45, 0.0])
def test_an_alpha_that_float32_cannot_hold_is_refused(alpha, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(pair(PEFT), path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})})
    with pytest.raises(UserError, match=rf"the alpha of .* is {re.escape(f'{alpha:g}')}; expected a number"):
        read_lora(path, *structure("sd1"))


BAD = {
    "is not a LoRA": {"conv_in.weight": UP},
    "LoHa is not supported": {"lora_unet_conv_in.hada_w1_a": UP},
    "LoKr is not supported": {"lora_unet_conv_in.lokr_w1": UP},
    "OFT is not supported": {"lora_unet_conv_in.oft_blocks": UP},
    "has no B": {PEFT.format("A"): DOWN},
    "1 of its 2 modules are not in this base model .unet.conv_up.": pair("unet.conv_up.lora_{}.weight") | pair(PEFT),
    "(4, 2048).*asks for (4, 24).*for SDXL": pair(f"unet.{BLOCK}.to_k.lora_{{}}.weight", down=np.ones((4, 2048))),
    "lora_te2_text_projection.*for SDXL": pair("lora_te2_text_projection.lora_{}.weight", ("down", "up")),
    "single_transformer_blocks.*for FLUX": pair("transformer.single_transformer_blocks.0.attn.to_q.lora_{}.weight"),
    "DoRA over inputs": pair(PEFT) | {f"unet.{BLOCK}.to_out.0.dora_scale": np.ones((1, 64))},
}


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(message, tmp_path):
    save_file(BAD[message], tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=re.sub(r"([()])", r"\\\1", message)):
        read_lora(tmp_path / "lora.safetensors", *structure("sd1"))


def test_a_damaged_file_is_named(tmp_path):
    path = write("peft", tmp_path / "lora.safetensors", random_lora("sd1"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"lora\.safetensors.*damaged"):
        read_lora(path, *structure("sd1"))


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_an_existing_file_is_kept(layout, tmp_path):
    (tmp_path / "lora.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write(layout, tmp_path / "lora.safetensors", random_lora("sd1"))
    assert (tmp_path / "lora.safetensors").read_text() == "mine"


def one_module(path: Path, metadata: dict[str, str] | None = None, **changes: np.ndarray) -> Path:
    """A file of one adapter of rank 2 on a linear layer of the UNet."""
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    outputs, inputs = structure("sd1")[0]["unet"].shapes[f"{stem.removeprefix('unet.')}.kernel"].shape[::-1]
    parts = {"lora_A.weight": np.ones((2, inputs), np.float32), "lora_B.weight": np.ones((outputs, 2), np.float32)}
    save_file({f"{stem}.{part}": value for part, value in (parts | changes).items()}, path, metadata)
    return path


@pytest.mark.parametrize("alpha", [0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["tensor", "head"])
def test_an_alpha_that_is_no_finite_number_or_0_is_refused(alpha, place, tmp_path):
    head = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": float(alpha)})} if place == "head" else None
    tensors = {"alpha": np.asarray(alpha, np.float32)} if place == "tensor" else {}
    path = one_module(tmp_path / "lora.safetensors", head, **tensors)
    with pytest.raises(UserError, match=r"lora\.safetensors: .*alpha"):
        read_lora(path, *structure("sd1"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_A.weight": np.ones((2, 64), np.int8)}, "is I8; weights must be"),
        ({"lora_A.weight": np.full((2, 64), np.nan, np.float32)}, "holds NaN"),
        ({"lora_B.weight": np.full((64, 2), np.inf, np.float16)}, "holds NaN or infinite"),
        ({"alpha": np.asarray(2, np.int64)}, "is I64; weights must be"),
    ],
)
def test_tensors_of_a_lora_are_finite_floats(changes, said, tmp_path):
    path = one_module(tmp_path / "lora.safetensors", **changes)
    with pytest.raises(UserError, match=rf"lora\.safetensors: 'unet.*\.to_q\.\w+(\.weight)?' {said}"):
        read_lora(path, *structure("sd1"))


@pytest.mark.parametrize(
    "head", [{"unet.lora_alpha": "8"}, {"unet.lora_alpha": True}, {"unet.alpha_pattern": []}, {"unet.use_rslora": 1},
             {"unet.alpha_pattern": {"to_q": None}}]
)  # fmt: skip
def test_a_head_whose_values_have_another_type_is_named(head, tmp_path):
    path = one_module(tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(head)})
    with pytest.raises(UserError, match=rf"lora_adapter_metadata: {next(iter(head)).split('.')[1]} = "):
        read_lora(path, *structure("sd1"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(", "is not a regular expression"), ("a" * 2000, "is longer than 1000 characters"),
     (r"(\w+\.?)+!", "takes more than 10 s to match")],
)  # fmt: skip
def test_an_alpha_pattern_that_cannot_be_matched_is_named(pattern, said, tmp_path):
    head = json.dumps({"unet.alpha_pattern": {pattern: 2.0}})
    path = one_module(tmp_path / "lora.safetensors", {"lora_adapter_metadata": head})
    with pytest.raises(UserError, match=rf"lora\.safetensors: its lora_adapter_metadata: alpha_pattern .* {said}"):
        read_lora(path, *structure("sd1"))


def test_the_matrices_of_a_linear_layer_may_be_1x1_kernels(tmp_path):
    plain = one_module(tmp_path / "plain.safetensors")
    kernels = {name.rsplit(".to_q.")[1]: value[:, :, None, None] for name, value in load_file(plain).items()}
    found = read_lora(one_module(tmp_path / "kernels.safetensors", **kernels), *structure("sd1"))
    for name, value in read_lora(plain, *structure("sd1")).adapters.items():
        np.testing.assert_array_equal(found.adapters[name], value)
