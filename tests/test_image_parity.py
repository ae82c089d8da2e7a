"""Whole images of every family against PyTorch diffusers, and the ways to load its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.sampling import ImageSampler, SamplingConfig, image_keys
from jaxbooth.errors import UserError
from jaxbooth.pipeline import Pipeline
from jaxbooth.sharding import make_mesh
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_write import write_folder
from tests.small_models import weights
from tests.torch_parity import TOLERANCE, relative_error
from tests.torch_pipelines import TEXT, Kind, in_torch, text_model, write_pipeline

PROMPTS = ["a red apple", "an emoji of a cat"]
STEPS, GUIDANCE, SEED = 3, 7.5, 5
SIZE = (32, 48)  # height and width
MODELS: list[tuple[Kind, str]] = [("sd2", "v_prediction"), ("sd2", "epsilon"), ("sdxl", "epsilon")]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def folder(request, tmp_path_factory) -> Path:
    kind, prediction = request.param
    return write_pipeline(kind, tmp_path_factory.mktemp(kind), prediction=prediction)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    return write_pipeline("sdxl", tmp_path_factory.mktemp("sdxl"))


def in_jaxbooth(folder: Path, mesh, negative: str = "", dtype: str = "float32") -> np.ndarray:
    """(prompts, H, W, 3) in 0..255."""
    pipeline = Pipeline.load(folder, dtype, mesh)
    settings = SamplingConfig("ddim", STEPS, GUIDANCE, pipeline.resolution, negative, *SIZE)
    return ImageSampler(pipeline.base, mesh, settings, 2).generate(pipeline.params, PROMPTS, SEED, [0, 1]).astype(float)


@pytest.fixture(scope="module")
def in_diffusers() -> Callable[..., np.ndarray]:
    """The same images, from the same noise."""
    keys = [jax.random.fold_in(key, 0) for key in image_keys(jax.random.key(SEED), jnp.arange(2))]
    noise = np.stack([jax.random.normal(key, (SIZE[0] // 2, SIZE[1] // 2, 4)) for key in keys])
    latents = torch.tensor(noise).permute(0, 3, 1, 2)

    def run(folder: Path, negative: str | None = None, **options: Any) -> np.ndarray:
        negatives = None if negative is None else [negative] * 2
        images = in_torch(folder)(
            PROMPTS, negative_prompt=negatives, height=SIZE[0], width=SIZE[1], latents=latents,
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", **options,
        ).images  # fmt: skip
        return 255 * images

    return run


@pytest.mark.parametrize("negative", ["", "a dog"])
def test_diffusers_generates_the_same_images(folder, mesh, in_diffusers, negative):
    ours, theirs = in_jaxbooth(folder, mesh, negative), in_diffusers(folder, negative or None)
    assert ours.shape == theirs.shape == (2, *SIZE, 3)
    assert np.abs(ours - theirs).max() <= 1  # ours are rounded to 8 bits
    assert ours.std() > 30


@pytest.mark.parametrize("zeros", [True, False, None])
def test_sdxl_without_a_negative_prompt_draws_as_its_pipeline_says(sdxl, mesh, in_diffusers, tmp_path, zeros):
    folder = shutil.copytree(sdxl, tmp_path / "model")
    index = read_json(folder / "model_index.json")
    del index["force_zeros_for_empty_prompt"]
    write_json(folder / "model_index.json", index | ({} if zeros is None else {"force_zeros_for_empty_prompt": zeros}))
    assert np.abs(in_jaxbooth(folder, mesh) - in_diffusers(folder)).max() <= 1


def test_the_comparison_would_see_an_empty_negative_prompt_that_is_encoded(sdxl, in_diffusers):
    assert np.abs(in_diffusers(sdxl) - in_diffusers(sdxl, "")).max() > 10


def test_the_comparison_would_see_another_negative_prompt(folder, in_diffusers):
    plain, negative = in_diffusers(folder), in_diffusers(folder, "a dog")
    assert np.abs(plain - negative).max() > 10


@pytest.mark.parametrize(
    "condition", [{"original_size": SIZE[::-1]}, {"target_size": SIZE[::-1]}, {"crops_coords_top_left": (8, 0)}]
)
def test_the_comparison_would_see_other_size_conditions(sdxl, in_diffusers, condition):
    assert np.abs(in_diffusers(sdxl) - in_diffusers(sdxl, **condition)).max() > 4


def test_bfloat16_stays_near_float32(sdxl, mesh):
    exact, rounded = in_jaxbooth(sdxl, mesh), in_jaxbooth(sdxl, mesh, dtype="bfloat16")
    assert 0 < np.abs(exact - rounded).mean() < 2


@pytest.mark.slow
def test_the_number_of_devices_does_not_matter_to_sdxl(sdxl, mesh):
    many = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    assert np.abs(in_jaxbooth(sdxl, mesh) - in_jaxbooth(sdxl, many)).max() <= 1


def test_an_sdxl_folder_is_a_pipeline_like_any_other(sdxl, mesh):
    pipeline = Pipeline.load(sdxl, mesh=mesh)
    assert list(pipeline.params) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert "text_projection.kernel" in pipeline.params["text_encoder_2"]
    assert "text_projection.kernel" not in pipeline.params["text_encoder"]
    images = pipeline.sample("a red apple", num=2, steps=2)
    assert [image.size for image in images] == [(32, 32), (32, 32)]
    assert images[0].tobytes() != images[1].tobytes()


def test_only_what_is_trained_is_held_in_float32(sdxl, mesh):
    base = BaseModel.read(sdxl, "bfloat16")
    params = load_params(base, mesh, trained=("text_encoder_2",))
    matrices = {name: {value.dtype for value in part.values() if value.ndim > 1} for name, part in params.items()}
    assert matrices == {
        "unet": {jnp.dtype("bfloat16")}, "text_encoder": {jnp.dtype("bfloat16")},
        "text_encoder_2": {jnp.dtype("float32")}, "vae": {jnp.dtype("float32")},
    }  # fmt: skip
    assert {value.dtype for part in params.values() for value in part.values() if value.ndim == 1} == {
        jnp.dtype("float32")
    }


@pytest.fixture(scope="module")
def projecting(tmp_path_factory) -> Path:
    """SD 1.x whose only text encoder was saved with the projection that CLIP has and Stable Diffusion never reads."""
    folder = write_pipeline("sd1", tmp_path_factory.mktemp("sd1"))
    encoder = text_model(transformers.CLIPTextModelWithProjection, TEXT | {"eos_token_id": 2245})
    encoder.save_pretrained(folder / "text_encoder")
    return folder


def test_a_projection_that_nothing_reads_changes_nothing(projecting, mesh):
    assert read_json(projecting / "model_index.json")["text_encoder"] == ["transformers", "CLIPTextModel"]
    base = BaseModel.read(projecting, "float32")
    params = load_params(base, mesh, components=("text_encoder",))
    found = jax.jit(base.text.encode)(params, base.text.tokenize(PROMPTS))
    with torch.no_grad():
        expected, _ = in_torch(projecting).encode_prompt(PROMPTS, "cpu", 1, False)
    assert found.pooled_prompt_embeds is None
    assert relative_error(found.prompt_embeds, expected.numpy()) < TOLERANCE


def test_a_projection_that_nothing_reads_is_exported_as_it_was(projecting, mesh, tmp_path):
    params = load_params(BaseModel.read(projecting, "float32"), mesh, components=("text_encoder",))
    write_folder(projecting, params, tmp_path)
    before, after = (weights(folder, "text_encoder") for folder in (projecting, tmp_path))
    np.testing.assert_array_equal(after["text_projection.weight"], before["text_projection.weight"])


def test_a_projection_that_the_configuration_does_not_name_is_refused_by_name(projecting, mesh, tmp_path):
    folder = shutil.copytree(projecting, tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"architectures": ["CLIPTextModel"]})
    with pytest.raises(UserError, match=r"text_encoder: .* 1 unknown \(text_projection.weight\)"):
        Pipeline.load(folder, mesh=mesh)
