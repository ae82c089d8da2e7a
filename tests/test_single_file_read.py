"""What can be wrong or unusual with a single file, and what is said about it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.ldm.prediction import TELLTALE, read_prediction
from jaxbooth.weights.ldm.read import convert_single_file, convert_vae
from jaxbooth.weights.ldm.write import write_single_file
from jaxbooth.weights.pickles import convert_pickle

from .small_models import files_of, scheduler_of, weights, write_model

UNET = "model.diffusion_model."
INPUT = f"{UNET}input_blocks.0.0.weight"
ATTENDS = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small SD 1.x folder."""
    return write_model("sd15", tmp_path_factory.mktemp("folder") / "model", "float16")


@pytest.fixture
def single(model, tmp_path) -> Path:
    """The same as one file."""
    write_single_file(model, {}, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def file_of(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("said", "shapes"),
    [
        ("a Stable Diffusion 3 model", {f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": (4, 4)}),
        ("a FLUX.1 model", {f"{UNET}double_blocks.0.img_mod.lin.weight": (4, 4)}),
        ("a FLUX.1 model", {"double_blocks.0.img_mod.lin.weight": (4, 4), "guidance_in.in_layer.weight": (4, 4)}),
        ("a FLUX.2 dev model", {"double_blocks.0.img_attn.qkv.weight": (4, 4), "guidance_in.in_layer.weight": (4, 4)}),
        ("a Qwen-Image model", {"transformer_blocks.0.img_mod.1.weight": (4, 4)}),
        ("a Lumina model", {"layers.0.adaLN_modulation.1.weight": (4, 4), "cap_embedder.1.weight": (4, 4)}),
        ("a Z-Image Omni model", {"siglip_pad_token": (1, 4), "cap_embedder.1.weight": (4, 4)}),
        ("a language model alone", {"model.layers.0.self_attn.q_proj.weight": (4, 4)}),
        ("a Stable Cascade model", {"clip_txt_mapper.weight": (4, 4)}),
        ("a PixArt model", {"t_block.1.weight": (4, 4)}),
        ("a Playground v2.5 model", {"edm_mean": (4,), INPUT: (8, 4, 3, 3), ATTENDS: (8, 2048)}),
        ("the SDXL refiner", {INPUT: (8, 4, 3, 3), ATTENDS: (8, 1280), f"{UNET}label_emb.0.0.weight": (4, 2560)}),
        ("an SD 1.x inpainting model", {INPUT: (8, 9, 3, 3), ATTENDS: (8, 768)}),
        ("an SDXL inpainting model", {INPUT: (8, 9, 3, 3), ATTENDS: (8, 2048)}),
        ("an SD 1.x instruct-pix2pix model", {INPUT: (8, 8, 3, 3), ATTENDS: (8, 768)}),
        ("an SD 2.x depth model", {INPUT: (8, 5, 3, 3), ATTENDS: (8, 1024)}),
        ("an SD 2.x unCLIP model", {INPUT: (8, 4, 3, 3), ATTENDS: (8, 1024), f"{UNET}label_emb.0.0.weight": (4, 6)}),
        ("a LoRA, not a whole model", {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 4)}),
        ("a LoRA, not a whole model", {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 4)}),
        ("a ControlNet", {"control_model.input_blocks.0.0.weight": (4, 4)}),
        ("the UNet of a diffusers folder alone", {"down_blocks.0.resnets.0.conv1.weight": (4, 4)}),
        ("a text encoder alone", {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}),
        ("a VAE alone", {"encoder.down.0.block.0.conv1.weight": (4, 4)}),
        ("not a checkpoint that jaxbooth knows", {"wte.weight": (4, 4)}),
        ("of an unknown architecture (its text is 32 wide)", {INPUT: (8, 4, 3, 3), ATTENDS: (8, 32)}),
    ],
)
def test_other_models_are_refused_by_name(said, shapes, tmp_path):
    file = file_of(tmp_path / "it.safetensors", shapes)
    with pytest.raises(UserError) as caught:
        convert_single_file(file, tmp_path / "out")
    assert f"{file} is {said}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_tensors_are_counted_and_ten_are_listed(model, single, tmp_path):
    gone = [name for name in load_file(single) if name.startswith("first_stage_model.decoder.")]
    rewrite(single, lambda tensors: [tensors.pop(name) for name in gone])
    with pytest.raises(UserError) as caught:
        convert_single_file(single, tmp_path / "out", skeleton=model)
    assert f"lacks {len(gone)} of " in str(caught.value)
    assert str(caught.value).count("first_stage_model.decoder.") == 10
    assert files_of(tmp_path).keys() == {"one.safetensors"}


def test_a_unet_with_more_than_its_architecture_is_refused(model, single, tmp_path):
    rewrite(single, lambda tensors: tensors.update({f"{UNET}input_blocks.1.2.motion.weight": np.zeros(3)}))
    with pytest.raises(UserError, match=r"1 tensors that its architecture lacks .*input_blocks\.1\.2\.motion\.weight"):
        convert_single_file(single, tmp_path / "out", skeleton=model)


def test_a_wrong_shape_names_the_tensor(model, single, tmp_path):
    rewrite(single, lambda tensors: tensors.update({f"{UNET}out.2.bias": np.zeros(8, np.float16)}))
    with pytest.raises(UserError, match=r"out\.2\.bias has shape \(8,\), but this architecture asks for \(4,\)"):
        convert_single_file(single, tmp_path / "out", skeleton=model)
    assert files_of(tmp_path).keys() == {"one.safetensors"}


def test_a_truncated_file_is_named(model, single, tmp_path):
    single.write_bytes(single.read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"one\.safetensors cannot be read.*damaged or incomplete"):
        convert_single_file(single, tmp_path / "out", skeleton=model)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float8_e4m3fn, "is F8_E4M3; weights must be"),
        (torch.int8, "is I8; weights must be"),
        (torch.int64, "is I64; "),
    ],
)
def test_what_is_no_float_of_16_bits_is_refused(model, single, tmp_path, dtype, said):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = load_torch(single)
    save_torch(tensors | {f"{UNET}out.2.bias": tensors[f"{UNET}out.2.bias"].to(dtype)}, single)
    with pytest.raises(UserError, match=rf"one\.safetensors: '{re.escape(UNET)}out\.2\.bias' {said}"):
        convert_single_file(single, tmp_path / "out", skeleton=model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(model, single, tmp_path, value):
    rewrite(single, lambda tensors: tensors.update({f"{UNET}out.2.bias": np.full(4, value, np.float16)}))
    with pytest.raises(UserError, match=r"one\.safetensors: '.*out\.2\.bias' holds NaN or infinite values"):
        convert_single_file(single, tmp_path / "out", skeleton=model)
    assert files_of(tmp_path).keys() == {"one.safetensors"}


def test_unpack_never_overwrites(model, single, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        convert_single_file(single, tmp_path / "out", skeleton=model)
    assert files_of(tmp_path / "out") == {"mine.txt": b"keep"}


def test_names_of_careless_merges_are_read(model, single, tmp_path):
    def damage(tensors):
        for name in list(tensors):
            changed = name.replace("transformer.text_model.", "transformer.").replace("attn_1.q.", "attn_1.to_q.")
            tensors[changed] = tensors.pop(name)
        tensors["model_ema.decay"] = np.zeros(1, np.float32)

    rewrite(single, damage)
    convert_single_file(single, tmp_path / "out", skeleton=model)
    for component in ("text_encoder", "vae"):
        expected = weights(model, component)
        assert all((value == expected[name]).all() for name, value in weights(tmp_path / "out", component).items())


def prediction_of(path: Path, tensors=None, metadata=None, asked=None, family=None):
    save_file({"any": np.zeros(1, np.float32)} | (tensors or {}), path, metadata)
    return tuple(read_prediction(open_tensors(path), path, asked, family))


def test_the_first_that_says_something_decides_the_prediction_type(tmp_path):
    file, v = tmp_path / "one.safetensors", {"v_pred": np.zeros(0, np.float32)}
    (tmp_path / "one.yaml").write_text("model: {params: {parameterization: v}}")
    spec = {"modelspec.prediction_type": "epsilon"}
    assert prediction_of(file) == ("v_prediction", False)
    assert prediction_of(file, metadata=spec) == ("epsilon", False)
    assert prediction_of(file, v | {"ztsnr": np.zeros(0, np.float32)}, spec) == ("v_prediction", True)
    assert prediction_of(file, v, spec, asked="epsilon") == ("epsilon", False)
    (tmp_path / "one.yaml").unlink()
    assert prediction_of(file) == (None, False)
    assert prediction_of(file, family=FAMILIES["sdxl"]) == ("epsilon", False)


@pytest.mark.parametrize(("spread", "expected"), [(0.2, "v_prediction"), (0.01, "epsilon")])
def test_the_kinds_of_sd_2_are_told_apart_by_the_spread_of_a_bias(spread, expected, tmp_path, rng):
    bias = (spread * rng.normal(size=320)).astype(np.float16)
    assert prediction_of(tmp_path / "one.safetensors", {TELLTALE: bias}, family=FAMILIES["sd21"]) == (expected, False)


def test_a_yaml_may_have_a_byte_order_mark_and_other_line_ends(tmp_path):
    (tmp_path / "one.yaml").write_bytes(b"\xef\xbb\xbfmodel:\r\n  params:\r\n    parameterization: v\r\n")
    assert prediction_of(tmp_path / "one.safetensors") == ("v_prediction", False)


BOMB = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9))
BOMB = "a0: &a0 [x]\n" + BOMB + "model: {params: {parameterization: *a8}}"


@pytest.mark.parametrize("text", [
    "model: [", "model: 3", "model: {params: {parameterization: x0}}", "model: {params: {parameterization: [v]}}",
    BOMB, "[" * 20_000, "model: " + "9" * 5_000, "model: {params: {parameterization: caf\xe9}}",
])  # fmt: skip
def test_a_useless_yaml_beside_the_file_is_named(text, tmp_path):
    (tmp_path / "one.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"one\.yaml") as raised:
        prediction_of(tmp_path / "one.safetensors")
    assert len(str(raised.value)) <= 500


def test_the_prediction_type_is_written_into_the_schedulers_configuration(model, single, tmp_path):
    convert_single_file(single, tmp_path / "out", skeleton=model, prediction_type="v_prediction")
    assert scheduler_of(tmp_path / "out") == scheduler_of(model) | {"prediction_type": "v_prediction"}


@pytest.fixture
def pickled(single) -> Path:
    """The single file as CompVis wrote it: a state dict beside a training state, here in bfloat16."""
    tensors = {name: torch.from_numpy(value).bfloat16() for name, value in load_file(single).items()}
    file = single.with_suffix(".ckpt")
    torch.save({"state_dict": tensors, "global_step": 875000}, file)
    return file


def test_a_pickle_is_read_only_when_asked_for(model, pickled, tmp_path):
    with pytest.raises(UserError, match=r"one\.ckpt is a pickle.*--allow-pickle"):
        convert_single_file(pickled, tmp_path / "out", skeleton=model)
    convert_single_file(pickled, tmp_path / "out", skeleton=model, allow_pickle=True)
    expected = {name: value.astype("bfloat16") for name, value in weights(model, "unet").items()}
    found = weights(tmp_path / "out", "unet")
    assert all((found[name] == expected[name]).all() for name in expected)


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path):
    torch.save({"state_dict": Code(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt cannot be read"):
        convert_single_file(tmp_path / "evil.ckpt", tmp_path / "out", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_component_in_a_bin_becomes_safetensors(legacy, tmp_path):
    expected = load_file(DEMO_MODEL / "text_encoder" / "model.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in expected.items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    convert_pickle(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def ldm_vae(single: Path, prefix: str) -> dict[str, np.ndarray]:
    start = "first_stage_model."
    return {name.replace(start, prefix): value for name, value in load_file(single).items() if name.startswith(start)}


def old_diffusers_vae(model: Path) -> dict[str, np.ndarray]:
    return {name.replace(".to_q.", ".query."): value for name, value in weights(model, "vae").items()}


@pytest.mark.parametrize("kind", ["ldm", "ldm with prefix", "diffusers", "whole checkpoint"])
def test_a_vae_in_one_file_becomes_a_folder(kind, model, single, tmp_path):
    tensors = {
        "ldm": lambda: ldm_vae(single, ""),
        "ldm with prefix": lambda: ldm_vae(single, "first_stage_model."),
        "diffusers": lambda: old_diffusers_vae(model),
        "whole checkpoint": lambda: load_file(single),
    }[kind]()
    save_file(tensors, tmp_path / "vae.safetensors")
    convert_vae(tmp_path / "vae.safetensors", tmp_path / "out", config=model / "vae" / "config.json")
    assert files_of(tmp_path / "out") == files_of(model / "vae")


def test_a_vae_of_another_architecture_is_refused(model, single, tmp_path):
    save_file(ldm_vae(single, ""), tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"lacks \d+ of 248 tensors"):
        convert_vae(tmp_path / "vae.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_skeleton_may_name_a_safety_checker_that_no_single_file_has(model, single, tmp_path):
    skeleton = Path(shutil.copytree(model, tmp_path / "skeleton"))
    index = read_json(skeleton / "model_index.json")
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write_json(skeleton / "model_index.json", index | {"safety_checker": checker})
    convert_single_file(single, tmp_path / "out", skeleton=skeleton)
    found = read_json(tmp_path / "out" / "model_index.json")
    assert (found["safety_checker"], found["requires_safety_checker"]) == ([None, None], False)
