"""Files of a transformer alone: written, read by diffusers, read back, and completed by the parts of another model."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.denoiser_file.identify import find_denoiser
from jaxbooth.weights.denoiser_file.write import write_denoiser
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source

from .flow_models import FLOW_FAMILIES, FlowFamily, write_pipeline
from .small_models import files_of

pytest_plugins = ["tests.hub_server"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[FlowFamily, Path]:
    """A pipeline of each family, in bfloat16 as the published ones are."""
    root = tmp_path_factory.mktemp("models")
    return {family: write_pipeline(family, root / family, torch.bfloat16) for family in FLOW_FAMILIES}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where prepared models go."""
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def write_file(folder: Path, family: FlowFamily, file: Path, **params: np.ndarray) -> Path:
    write_denoiser(folder, FAMILIES[family], params, file)
    return file


def parts_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """Returns the files of each part of a model, also where those are behind symlinks."""
    return {part.name: files_of(part.resolve()) for part in sorted(folder.iterdir()) if part.is_dir()}


def rewrite(file: Path, rename) -> Path:
    """Gives the tensors of a file other names."""
    save_file({rename(name): value for name, value in load_file(file).items()}, file)
    return file


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_reads_the_same_tensors(folders, family, tmp_path):
    file = write_file(folders[family], family, tmp_path / "one.safetensors")
    kind = getattr(diffusers, FAMILIES[family].denoiser.class_name)
    model = kind.from_single_file(str(file), config=str(folders[family]), subfolder="transformer", torch_dtype="auto")
    expected = load_file(folders[family] / "transformer" / WEIGHTS)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].to(torch.bfloat16), expected[name]) for name in expected)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_file_with_the_parts_of_its_model_is_that_model(folders, family, tmp_path):
    file = write_file(folders[family], family, tmp_path / "one.safetensors")
    found = resolve_model(Source(str(file), components=str(folders[family])))
    assert parts_of(found) == parts_of(folders[family])
    assert (found / "text_encoder").resolve() == folders[family] / "text_encoder"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_prefix_and_what_nothing_reads_change_nothing(folders, family, prefix, tmp_path):
    file = rewrite(write_file(folders[family], family, tmp_path / "one.safetensors"), lambda name: prefix + name)
    unused = {"vae.decoder.conv_in.weight": torch.ones(2)}
    if family == "zimage":
        unused[f"{prefix}norm_final.weight"] = torch.ones(2)
    save_file(load_file(file) | unused, file)
    found = resolve_model(Source(str(file), components=str(folders[family])))
    assert files_of(found / "transformer") == files_of(folders[family] / "transformer")


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_diffusers_transformer_in_one_file_is_read(folders, family):
    file = folders[family] / "transformer" / WEIGHTS
    found = resolve_model(Source(str(file), components=str(folders[family])))
    assert parts_of(found) == parts_of(folders[family])


def test_norms_of_newer_klein_files_are_called_weights(folders, tmp_path):
    file = write_file(folders["klein"], "klein", tmp_path / "one.safetensors")
    rewrite(file, lambda name: name.replace("_norm.scale", "_norm.weight"))
    found = resolve_model(Source(str(file), components=str(folders["klein"])))
    assert files_of(found / "transformer") == files_of(folders["klein"] / "transformer")


def test_trained_parameters_replace_the_folders_and_the_header_says_what_the_model_is(folders, tmp_path):
    kernel = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    params = {"layers.1.attention.to_k.kernel": kernel}
    write_denoiser(folders["zimage"], FAMILIES["zimage"], params, tmp_path / "one.safetensors", metadata={"steps": "9"})
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        metadata, qkv = file.metadata(), file.get_tensor("layers.1.attention.qkv.weight")
    base = load_file(folders["zimage"] / "transformer" / WEIGHTS)
    assert torch.equal(qkv[32:64], torch.from_numpy(kernel.T.copy()).to(torch.bfloat16))
    assert torch.equal(qkv[:32], base["layers.1.attention.to_q.weight"])
    assert torch.equal(qkv[64:], base["layers.1.attention.to_v.weight"])
    assert metadata["steps"] == "9"
    assert metadata["modelspec.architecture"] == FAMILIES["zimage"].modelspec["flow"]


# Where the other parts come from


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_parts_on_the_hub_are_fetched_without_the_transformer(folders, family, hub, tmp_path):
    hub.serve("a/base", folders[family])
    file = write_file(folders[family], family, tmp_path / "one.safetensors")
    found = resolve_model(Source(str(file), components="a/base"))
    assert files_of(found / "transformer") == files_of(folders[family] / "transformer")
    assert f"transformer/{WEIGHTS}" not in hub.fetched
    assert {"text_encoder/model.safetensors", f"vae/{WEIGHTS}", "tokenizer/chat_template.jinja"} <= set(hub.fetched)


def test_the_published_model_of_the_files_size_is_named(tmp_path):
    for family, name, width, published in (
        ("zimage", "cap_embedder.1.weight", 2560, "Tongyi-MAI/Z-Image"),
        ("klein", "txt_in.weight", 7680, "black-forest-labs/FLUX.2-klein-base-4B"),
        ("klein", "txt_in.weight", 12288, "black-forest-labs/FLUX.2-klein-base-9B"),
        ("klein", "txt_in.weight", 72, None),
    ):
        save_file({name: torch.zeros(1, width, dtype=torch.bfloat16)}, tmp_path / "one.safetensors")
        denoiser = find_denoiser(tmp_path / "one.safetensors")
        assert denoiser is not None
        assert (denoiser.family.name, denoiser.published) == (family, published)


def test_a_size_that_nobody_published_needs_its_parts_named(folders, tmp_path):
    file = write_file(folders["klein"], "klein", tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"takes prompt embeddings of 72 numbers; name the model .* with --components"):
        resolve_model(str(file))


# What is refused


def test_parts_of_another_family_or_size_are_refused(folders, tmp_path):
    file = write_file(folders["klein"], "klein", tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"is a FLUX.2 klein transformer, and --components .*zimage is for 'ZImagePip"):
        resolve_model(Source(str(file), components=str(folders["zimage"])))
    other = tmp_path / "other"
    for name in ("transformer", "vae"):
        (other / name).mkdir(parents=True)
    write_json(other / "model_index.json", read_json(folders["klein"] / "model_index.json"))
    config = read_json(folders["klein"] / "transformer" / "config.json")
    write_json(other / "transformer" / "config.json", config | {"joint_attention_dim": 96})
    with pytest.raises(UserError, match=r"takes prompt embeddings of 72 numbers, and .* is of a model that takes 96"):
        resolve_model(Source(str(file), components=str(other)))


def test_parts_are_refused_where_nothing_is_missing(folders):
    source = Source(str(folders["klein"]), components=str(folders["zimage"]))
    with pytest.raises(UserError, match=r"--components .*zimage does not apply to model .*klein, which is no transf"):
        resolve_model(source)


def test_a_file_with_too_few_layers_is_incomplete(folders, tmp_path):
    file = write_file(folders["zimage"], "zimage", tmp_path / "one.safetensors")
    save_file({name: value for name, value in load_file(file).items() if "layers.1." not in name}, file)
    with pytest.raises(UserError, match=r"lacks 13 of \d+ tensors of its architecture \(layers.1.adaLN"):
        resolve_model(Source(str(file), components=str(folders["zimage"])))


def test_a_file_with_more_layers_is_of_another_model(folders, tmp_path):
    file = write_file(folders["klein"], "klein", tmp_path / "one.safetensors")
    save_file(load_file(file) | {"double_blocks.7.img_mlp.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match=r"its transformer has 1 tensors that its architecture lacks \(double_blocks.7"):
        resolve_model(Source(str(file), components=str(folders["klein"])))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layers.0.attention.qkv.weight", torch.float8_e4m3fn),
        ("layers.0.attention.qkv.weight", torch.int8),
        ("layers.0.feed_forward.w1.weight_scale", torch.float32),
        ("layers.0.feed_forward.w1.weight_scale_2", torch.float32),
        ("scaled_fp8", torch.float32),
        ("layers.0.attention.qkv.comfy_quant", torch.uint8),
        ("layers.0.attention.qkv.qweight", torch.int8),
    ],
)
def test_quantized_files_are_refused(folders, name, dtype, tmp_path):
    file = write_file(folders["zimage"], "zimage", tmp_path / "one.safetensors")
    save_file(load_file(file) | {name: torch.zeros(2).to(dtype)}, file)
    with pytest.raises(
        UserError, match=rf"one.safetensors is quantized \({name} is .*\); .* use the model's bf16 file"
    ):
        resolve_model(Source(str(file), components=str(folders["zimage"])))


@pytest.mark.parametrize("name", ["{tmp}/z_image-Q4_K_M.gguf", "owner/model/z_image-Q8_0.gguf"])
def test_gguf_files_are_refused(name, tmp_path):
    (tmp_path / "z_image-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"is a GGUF file, whose weights are quantized; use the model's bf16"):
        resolve_model(name.format(tmp=tmp_path))
