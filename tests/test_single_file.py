"""Single-file checkpoints: a folder in, one file out, and back; read by diffusers in between."""

import jax
import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import LDM_FAMILIES
from jaxbooth.weights.ldm.layout import components
from jaxbooth.weights.ldm.read import convert_single_file
from jaxbooth.weights.ldm.write import single_file_shapes, write_single_file
from jaxbooth.weights.names import canonical
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors

from .small_models import DTYPES, files_of, scheduler_of, weights, write_model

TOWER = "cond_stage_model.model."


def metadata_of(file) -> dict[str, str]:
    with safe_open(file, "np") as tensors:
        return tensors.metadata()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", LDM_FAMILIES)
def test_a_folder_comes_back_byte_for_byte(family, dtype, tmp_path):
    folder = write_model(family, tmp_path / "model", dtype)
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    convert_single_file(tmp_path / "one.safetensors", tmp_path / "back", skeleton=folder)
    assert files_of(tmp_path / "back") == files_of(folder)


@pytest.mark.parametrize("family", LDM_FAMILIES)
def test_diffusers_reads_the_same_tensors(family, tmp_path):
    folder = write_model(family, tmp_path / "model")
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    read = kind.from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), local_files_only=True)
    for component in components(folder):
        found = {canonical(name): value for name, value in getattr(read, component).state_dict().items()}
        found.pop(None, None)
        expected = {canonical(name): value for name, value in weights(folder, component).items()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], torch.from_numpy(expected[name])) for name in expected)


@pytest.mark.parametrize("family", LDM_FAMILIES)
def test_the_expected_names_are_those_of_the_file(family, tmp_path):
    folder = write_model(family, tmp_path / "model", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    count = write_single_file(folder, {}, tmp_path / "one.safetensors")
    found = {name: tensor.shape for name, tensor in load_file(tmp_path / "one.safetensors").items()}
    assert single_file_shapes(folder) == found
    assert count == len(found)


def test_trained_parameters_replace_the_folders(tmp_path):
    folder = write_model("sd15", tmp_path / "model", "float16")
    kernel = np.arange(3 * 3 * 4 * 32, dtype=np.float32).reshape(3, 3, 4, 32)
    params = {"unet": {"conv_in.kernel": kernel}, "text_encoder": {"final_layer_norm.scale": jax.numpy.full(24, 3.0)}}
    write_single_file(folder, params, tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")
    written = found["model.diffusion_model.input_blocks.0.0.weight"]
    assert written.dtype == np.float16
    np.testing.assert_array_equal(written, kernel.transpose(3, 2, 0, 1))
    norm = found["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    np.testing.assert_array_equal(norm, np.full(24, 3, np.float16))
    untouched = weights(folder, "unet")["conv_in.bias"]
    np.testing.assert_array_equal(found["model.diffusion_model.input_blocks.0.0.bias"], untouched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_has_the_dtype_that_is_asked_for(dtype, tmp_path):
    folder = write_model("sd21", tmp_path / "model")
    write_single_file(folder, {}, tmp_path / "one.safetensors", np.dtype(DTYPES[dtype]))
    assert {tensor.dtype for tensor in load_file(tmp_path / "one.safetensors").values()} == {np.dtype(DTYPES[dtype])}


def test_sd_2_gets_the_last_layer_that_web_uis_build(tmp_path):
    folder = write_model("sd21", tmp_path / "model")
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")
    last = {name.partition("resblocks.2.")[2]: name for name in found if "resblocks.2." in name}
    assert len(last) == 12
    for rest, name in last.items():
        np.testing.assert_array_equal(found[f"{TOWER}transformer.resblocks.3.{rest}"], found[name])
    np.testing.assert_array_equal(found[f"{TOWER}text_projection"], np.eye(24))
    assert found[f"{TOWER}logit_scale"].shape == ()


def test_the_projection_of_the_second_tower_is_stored_transposed(tmp_path):
    folder = write_model("sdxl", tmp_path / "model")
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")["conditioner.embedders.1.model.text_projection"]
    np.testing.assert_array_equal(found, weights(folder, "text_encoder_2")["text_projection.weight"].T)


@pytest.mark.parametrize(
    ("family", "prediction", "architecture", "word"),
    [
        ("sd15", "epsilon", "stable-diffusion-v1", "epsilon"),
        ("sd21", "epsilon", "stable-diffusion-v2-512", "epsilon"),
        ("sd21", "v_prediction", "stable-diffusion-v2-768-v", "v"),
        ("sdxl", "v_prediction", "stable-diffusion-xl-v1-base", "v"),
    ],
)
def test_the_metadata_says_what_the_model_is(family, prediction, architecture, word, tmp_path):
    folder = write_model(family, tmp_path / "model", prediction_type=prediction)
    write_single_file(folder, {}, tmp_path / "one.safetensors", metadata={"jaxbooth.steps": "800"})
    found = metadata_of(tmp_path / "one.safetensors")
    assert found["modelspec.architecture"] == architecture
    assert found["modelspec.prediction_type"] == word
    assert found["jaxbooth.steps"] == "800"


def test_an_sdxl_file_that_predicts_v_carries_the_markers(tmp_path):
    folder = write_model("sdxl", tmp_path / "model", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")
    assert found["v_pred"].shape == found["ztsnr"].shape == (0,)
    (tmp_path / "plain").mkdir()
    plain = write_model("sdxl", tmp_path / "plain" / "model")
    convert_single_file(tmp_path / "one.safetensors", tmp_path / "back", skeleton=plain)
    assert scheduler_of(tmp_path / "back") == scheduler_of(folder)


@pytest.mark.parametrize(
    ("family", "heads", "tower"),
    [("sd15", {"num_heads": 4}, "FrozenCLIPEmbedder"), ("sd21", {"num_head_channels": 16}, "FrozenOpenCLIPEmbedder")],
)
def test_a_file_that_predicts_v_has_its_configuration_beside_it(family, heads, tower, tmp_path):
    folder = write_model(family, tmp_path / "model", prediction_type="v_prediction")
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    params = yaml.safe_load((tmp_path / "one.yaml").read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    unet = params["unet_config"]["params"]
    assert (unet["context_dim"], unet["channel_mult"], unet["attention_resolutions"]) == (24, [1, 2], [1])
    assert {name: value for name, value in unet.items() if name.startswith("num_head")} == heads
    assert params["cond_stage_config"]["target"].endswith(f".{tower}")


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_prediction_and_zero_snr_of_sd_1_and_2_survive_the_way_through_a_single_file(family, tmp_path):
    folder = write_model(family, tmp_path / "model", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    write_single_file(folder, {}, tmp_path / "one.safetensors")
    plain = write_model(family, tmp_path / "plain")
    convert_single_file(tmp_path / "one.safetensors", tmp_path / "back", skeleton=plain)
    assert scheduler_of(tmp_path / "back") == scheduler_of(folder)
    assert "v_pred" not in single_file_shapes(folder)  # which readers know of SDXL files alone


def test_a_prediction_type_that_no_single_file_can_tell_is_refused(tmp_path):
    folder = write_model("sd15", tmp_path / "model", prediction_type="sample")
    with pytest.raises(UserError, match="'sample' cannot be told"):
        write_single_file(folder, {}, tmp_path / "one.safetensors")


@pytest.mark.parametrize("existing", ["one.safetensors", "one.yaml"])
def test_pack_never_overwrites(existing, tmp_path):
    folder = write_model("sd21", tmp_path / "model", prediction_type="v_prediction")
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UserError, match=f"{existing} exists already"):
        write_single_file(folder, {}, tmp_path / "one.safetensors")
    assert (tmp_path / existing).read_text() == "mine"


def test_a_failed_pack_leaves_nothing(tmp_path):
    folder = write_model("sd15", tmp_path / "model")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.weight has shape|reshape"):
        write_single_file(folder, {"unet": {"conv_in.kernel": np.zeros((1, 1, 1, 1))}}, tmp_path / "one.safetensors")
    assert files_of(tmp_path) == before


def test_a_folder_without_a_tensor_is_named(tmp_path):
    folder = write_model("sd15", tmp_path / "model")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "quant_conv.bias"}, file)
    with pytest.raises(UserError, match=r"vae: the tensor quant_conv\.bias is missing"):
        write_single_file(folder, {}, tmp_path / "one.safetensors")


def test_the_stream_has_the_bytes_of_the_safetensors_library(tmp_path, rng):
    arrays = {f"{dtype}.{index}": rng.normal(size=(3, index)).astype(kind)
              for dtype, kind in DTYPES.items() for index in (2, 0, 5)}  # fmt: skip
    arrays["ids"] = np.arange(7)
    tensors = [LazyTensor(name, value.dtype, value.shape, lambda value=value: value) for name, value in arrays.items()]
    write_tensors(tmp_path / "mine", tensors, {"format": "pt"})
    assert (tmp_path / "mine").read_bytes() == save(arrays, {"format": "pt"})
