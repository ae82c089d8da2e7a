"""Which folders are refused, and that the message names what they are."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import LDM_FAMILIES
from tests.small_models import write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {family: write_model(family, tmp_path_factory.mktemp("models") / family) for family in LDM_FAMILIES}


@pytest.fixture
def copy_of(models, tmp_path):
    """A folder's copy with other values: file -> key -> value."""

    def make(family: str, changes: dict[str, dict[str, Any]]) -> Path:
        folder = shutil.copytree(models[family], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        for file, values in changes.items():
            path = folder / file
            write_json(path, read_json(path) | values)
        return folder

    return make


def refusal(folder: Path, **options: Any) -> str:
    """The message, less the path of the folder."""
    with pytest.raises(UserError) as error:
        BaseModel.read(folder, "float32", **options)
    return re.sub(rf"{folder}/?", "", str(error.value))


@pytest.mark.parametrize("family", LDM_FAMILIES)
def test_each_family_is_read(models, family):
    base = BaseModel.read(models[family], "float32")
    encoders = ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)
    assert base.components == ("unet", "vae", *encoders)
    assert base.family.name == family
    assert base.text.conditioning.has_pooled == (family == "sdxl")
    assert base.text.width == base.denoiser_config.cross_attention_dim


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "FLUX.1"),
        ("FluxKontextPipeline", "FLUX.1"),
        ("StableDiffusionXLImg2ImgPipeline", "the SDXL refiner"),
        ("StableDiffusionInpaintPipeline", "an inpainting model"),
        ("StableDiffusionXLInpaintPipeline", "an SDXL inpainting model"),
        ("StableDiffusionDepth2ImgPipeline", "a depth model"),
        ("StableDiffusionUpscalePipeline", "an upscaler"),
        ("StableDiffusionInstructPix2PixPipeline", "InstructPix2Pix"),
        ("PixArtSigmaPipeline", "PixArt"),
    ],
)
def test_a_model_of_another_kind_is_named(copy_of, kind, name):
    message = refusal(copy_of("sd15", {"model_index.json": {"_class_name": kind}}))
    assert message.startswith(f"model_index.json: {name} ({kind}) is not supported; ")


@pytest.mark.parametrize("kind", ["AFuturePipeline", None])
def test_an_unknown_class_is_named(copy_of, kind):
    message = refusal(copy_of("sd15", {"model_index.json": {"_class_name": kind}}))
    assert message.startswith(f"model_index.json: {kind} is not supported; jaxbooth trains text-to-image models")


@pytest.mark.parametrize("family", LDM_FAMILIES)
@pytest.mark.parametrize(("channels", "name"), [(9, "an inpainting model"), (8, "an image-editing model")])
def test_a_unet_with_more_input_channels_is_named(copy_of, family, channels, name):
    message = refusal(copy_of(family, {"unet/config.json": {"in_channels": channels}}))
    assert message == f"unet/config.json: in_channels {channels} is not the VAE's 4; {name} cannot be trained."


def test_the_refiners_unet_is_named(copy_of):
    # five numbers of 8 features instead of six, and the second text encoder alone
    changes = {"projection_class_embeddings_input_dim": 16 + 5 * 8, "cross_attention_dim": 40}
    message = refusal(copy_of("sdxl", {"unet/config.json": changes}))
    assert message == "unet/config.json is the SDXL refiner's, which cannot be trained; use an SDXL base model."


def test_a_pooled_width_that_does_not_fit_is_named(copy_of):
    message = refusal(copy_of("sdxl", {"unet/config.json": {"projection_class_embeddings_input_dim": 64 + 3}}))
    assert "projection_class_embeddings_input_dim 67 does not fit text_encoder_2's projection_dim 16" in message


@pytest.mark.parametrize(
    ("unet", "index", "found", "family"),
    [("sdxl", "sd15", "an SDXL UNet", "Stable Diffusion 1.x or 2.x"), ("sd15", "sdxl", "not an SDXL UNet", "SDXL")],
)
def test_the_unet_of_another_family_is_named(models, copy_of, unet, index, found, family):
    folder = copy_of(index, {"unet/config.json": {}})
    shutil.copy(models[unet] / "unet" / "config.json", folder / "unet" / "config.json")
    message = refusal(folder)
    assert message.startswith(f"unet/config.json is {found}, but model_index.json says {family}; ")


def test_a_text_encoder_of_another_width_is_named(copy_of):
    message = refusal(copy_of("sd21", {"text_encoder/config.json": {"hidden_size": 32}}))
    assert message.startswith("unet/config.json: cross_attention_dim 24 does not fit the text encoder's width 32; ")


@pytest.mark.parametrize("kind", ["text", "text_image", "image"])
def test_added_conditions_of_another_model_are_named(copy_of, kind):
    message = refusal(copy_of("sd15", {"unet/config.json": {"addition_embed_type": kind}}))
    assert message.startswith(f"unet/config.json: addition_embed_type = '{kind}' is not supported; ")


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("unet/config.json", "out_channels", 8, "out_channels 8 is not in_channels 4; "),
        ("unet/config.json", "sample_size", 512 + 1, "sample_size = 513 is not valid: "),
        ("vae/config.json", "in_channels", 4, "in_channels 4 is not supported; images have 3."),
        ("vae/config.json", "out_channels", 1, "out_channels 1 is not supported; images have 3."),
        ("vae/config.json", "scaling_factor", 0, "scaling_factor = 0 is not valid: "),
        ("text_encoder/config.json", "vocab_size", 2000, ""),
        ("text_encoder/config.json", "architectures", "CLIPTextModel", "architectures = 'CLIPTextModel' is not valid"),
        ("model_index.json", "unet", ["diffusers"], "'unet' is ['diffusers']; expected a library and a class."),
        ("model_index.json", "force_zeros_for_empty_prompt", "false", "force_zeros_for_empty_prompt = 'false' is not "),
        ("scheduler/scheduler_config.json", "beta_end", 2, "beta_end = 2 is not valid: "),
        ("tokenizer/tokenizer_config.json", "model_max_length", 1, "model_max_length = 1 is not valid: "),
        ("tokenizer/tokenizer_config.json", "model_max_length", "77", "model_max_length = '77' is not valid: "),
        ("tokenizer/tokenizer_config.json", "eos_token", {"content": 3}, "eos_token: content = 3 is not valid: "),
        ("tokenizer/special_tokens_map.json", "pad_token", 0, "pad_token = 0 is not valid: "),
        ("tokenizer/vocab.json", "cat</w>", "7", "the id of 'cat</w>' is '7'; "),
        ("tokenizer/vocab.json", "cat</w>", 0, "the id 0 belongs to two tokens, "),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file_and_key(copy_of, file, key, value, said):
    message = refusal(copy_of("sd15", {file: {key: value}}))
    assert message.startswith(f"{file}: {said}" if said else "tokenizer: the tokenizer has 2246 tokens, but the text ")
    assert len(message) < 300


def test_the_length_that_transformers_writes_where_nobody_set_one_is_read(copy_of):
    folder = copy_of("sd15", {"tokenizer/tokenizer_config.json": {"model_max_length": int(1e30)}})
    assert BaseModel.read(folder, "float32").text.encoders[0].tokenizer.max_length == 77


def test_text_encoders_that_read_different_lengths_are_named(copy_of):
    message = refusal(copy_of("sdxl", {"tokenizer_2/tokenizer_config.json": {"model_max_length": 16}}))
    assert "the text encoders read 32 and 16 tokens" in message


@pytest.mark.parametrize(("family", "most"), [("sd15", 2), ("sd21", 2), ("sdxl", 1)])
def test_a_clip_skip_that_leaves_no_layer_is_refused(models, family, most):
    assert BaseModel.read(models[family], "float32", clip_skip=most).text.clip_skip == most
    message = refusal(models[family], clip_skip=most + 1)
    assert message == f"--text.clip-skip {most + 1} leaves nothing of a text encoder of 3 layers."


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_folder_is_named(copy_of, part):
    folder = copy_of("sdxl", {})
    shutil.rmtree(folder / part)
    message = refusal(folder)
    assert message.startswith(part)
    assert "is missing" in message or "holds no tokenizer" in message


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder_2/config.json",
     "scheduler/scheduler_config.json", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt"],
)  # fmt: skip
def test_a_torn_file_is_named(copy_of, file):
    folder = copy_of("sdxl", {})
    content = (folder / file).read_text()
    (folder / file).write_text(content[: len(content) // 2])
    message = refusal(folder)
    assert message.startswith(file if "tokenizer" not in file else "tokenizer_2")
    assert "is not valid JSON" in message or "cannot be read" in message or "merges no two tokens" in message


@pytest.mark.parametrize("content", ["", "[]", "null"])
def test_a_file_that_holds_no_object_is_named(copy_of, content):
    folder = copy_of("sd15", {})
    (folder / "unet" / "config.json").write_text(content)
    assert refusal(folder).startswith("unet/config.json ")
