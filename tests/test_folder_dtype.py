"""An exported folder generates images in PyTorch without naming a dtype, whatever the base model's files have."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxbooth.base.model import BaseModel
from jaxbooth.export.export import FORMATS
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.diffusers_write import write_folder

from .made_up_exports import DORA, FULL, MadeUpRun, write_models
from .small_models import files_of

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CHECKER = {"vision_config": TOWER | {"image_size": 32, "patch_size": 16}, "text_config": TOWER, "projection_dim": 16}


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """SD 1.x in float16 with a safety checker, as the Hub's fp16 folders have it."""
    folder = write_models(tmp_path_factory.mktemp("models"))["sd"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(transformers.CLIPConfig(**CHECKER))
    whole = diffusers.StableDiffusionPipeline(
        pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, pipe.scheduler, checker,
        transformers.CLIPImageProcessor(size=32, crop_size=32),
    )  # fmt: skip
    whole.to(torch.float16).save_pretrained(folder)
    return folder


def generated(folder: Path, **options) -> np.ndarray:
    """An image of a pipeline that is opened as documentation everywhere says."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat", num_inference_steps=2, height=16, width=16, output_type="np").images


def dtypes(folder: Path) -> dict[str, set[str]]:
    return {
        path.parent.name: {tensor.dtype.name for tensor in load_file(path).values() if tensor.dtype.kind == "f"}
        for path in folder.glob("*/*.safetensors")
    }


@pytest.mark.parametrize("settings", [FULL, DORA], ids=["full", "lora"])
def test_a_folder_made_from_float16_opens_and_generates_without_a_dtype(half, mesh, tmp_path, settings):
    made = MadeUpRun(BaseModel.read(half, "float32"), mesh, tmp_path / "out", "diffusers", None, settings)
    assert generated(made.out).shape == (1, 16, 16, 3)
    found = dtypes(made.out)
    assert all(found[name] == {"float32"} for name in made.base.components)


def test_the_files_of_the_base_would_not_generate(half, tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(half, {}, tmp_path / "out", "base")
    with pytest.raises(RuntimeError, match=r"Half|dtype"):
        generated(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_configuration_names_the_dtype_of_its_weights(half, tmp_path, dtype):
    (tmp_path / "out").mkdir()
    write_folder(half, {}, tmp_path / "out", dtype)
    for name in ("text_encoder", "safety_checker"):
        raw = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert raw.get("dtype", raw.get("torch_dtype")) == dtype
        model = transformers.CLIPTextModel if name == "text_encoder" else (
            diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
        )  # fmt: skip
        assert model.from_pretrained(tmp_path / "out" / name).dtype == getattr(torch, dtype)


def test_base_keeps_every_byte_and_float32_those_of_a_float32_model(half, tmp_path):
    for name in ("same", "wide", "again"):
        (tmp_path / name).mkdir()
    write_folder(half, {}, tmp_path / "same", "base")
    assert files_of(tmp_path / "same") == files_of(half)
    write_folder(half, {}, tmp_path / "wide", "float32")
    write_folder(tmp_path / "wide", {}, tmp_path / "again", "float32")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "wide") != files_of(half)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("diffusers", "float32"), ("single-file", "base"), ("lora", "base"), ("embeddings", "base")]
)
def test_only_a_folder_is_widened(kind, dtype):
    assert FORMATS[kind].default_dtype(FAMILIES["sdxl"]) == dtype
