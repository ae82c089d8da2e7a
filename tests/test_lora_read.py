"""Reading LoRA files: spellings, alphas, damage, and files that do not fit."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxbooth.errors import UserError
from jaxbooth.weights.lora.read import read_lora
from tests.lora_files import random_lora, structure, write

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
    with pytest.raises(UserError, match=rf"to_out.0: its alpha is {re.escape(f'{alpha:g}')}; expected a number"):
        read_lora(path, *structure("sd1"))


BAD = {
    "is not a LoRA": {"conv_in.weight": UP},
    "has no hada_w1_b and no hada_w2_a and no hada_w2_b matrix": {"lora_unet_conv_in.hada_w1_a": UP},
    "has no lokr_w2_a and no lokr_w2_b matrix": {"lora_unet_conv_in.lokr_w1": UP},
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
