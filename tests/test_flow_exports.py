"""Exports of Z-Image and FLUX.2 klein: read back, opened in diffusers, and described by a model card."""

import os
import subprocess
import sys
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import image_keys
from jaxbooth.export.model_card import CardContent, model_card
from jaxbooth.export.notes import reader_notes
from jaxbooth.pipeline import Pipeline
from jaxbooth.storage.text import read_json

from .flow_models import FLOW_FAMILIES, FlowFamily, write_pipeline
from .made_up_exports import MadeUpRun
from .small_models import files_of

LORA = {"lora": {"rank": 4, "alpha": 2.0, "targets": "attention+ff"}}
PROMPT, STEPS, GUIDANCE, SEED = "a sks cat", 3, 5.0, 5
SIZE = (32, 48)  # height and width
WEIGHTS = "diffusion_pytorch_model.safetensors"
pytest_plugins = ["tests.hub_server"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[FlowFamily, Path]:
    """A pipeline of each family, Z-Image's in bfloat16 as the published ones are."""
    root = tmp_path_factory.mktemp("models")
    dtypes = {"zimage": torch.bfloat16, "klein": torch.float32}
    return {family: write_pipeline(family, root / family, dtypes[family]) for family in FLOW_FAMILIES}


@pytest.fixture
def export(folders, mesh, tmp_path):
    """Exports a made-up result of a family's small model."""

    def run(family: FlowFamily, format: str, dtype: str | None = None, spread=0.03, **settings) -> MadeUpRun:
        base = BaseModel.read(folders[family], "float32")
        return MadeUpRun(base, mesh, tmp_path / format, format, dtype, settings, spread)

    return run


@pytest.mark.parametrize(
    ("family", "kind", "settings"),
    [("zimage", "diffusers", LORA), ("zimage", "single-file", {}),
     ("klein", "diffusers", {}), ("klein", "single-file", LORA)],
)  # fmt: skip
def test_an_export_is_what_was_trained_and_pytorch_computes_the_same(export, family, kind, settings):
    made = export(family, kind, **settings)
    [sentence] = made.verify()
    assert sentence.startswith("verified ")
    assert "PyTorch diffusers agrees" in made.compare()


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_what_is_not_trained_is_copied(export, folders, family):
    made = export(family, "diffusers")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        assert files_of(made.out / part) == files_of(folders[family] / part)
    assert read_json(made.out / "model_index.json") == read_json(folders[family] / "model_index.json")


def test_a_folder_in_bfloat16_says_how_it_is_opened(export):
    [note] = reader_notes(export("zimage", "diffusers").export)
    assert note == "open it in PyTorch with torch_dtype=torch.bfloat16, or its parts disagree on the dtype"


def test_a_single_file_says_what_it_lacks(export):
    [note] = reader_notes(export("klein", "single-file").export)
    assert note.startswith("the file holds the transformer alone, for the folder models/diffusion_models of ComfyUI")


def card_of(made: MadeUpRun, base_model: str, components: str | None = None) -> str:
    """Returns the model card of an export that is pushed to me/cat."""
    export = made.export
    return model_card(
        CardContent(
            repo="me/cat",
            base_model=base_model,
            format=export.format,
            name=export.out.name,
            family=export.base.family,
            instance_prompts=("a sks cat",),
            notes=reader_notes(export),
            components=components,
        )
    )


@pytest.mark.parametrize(("family", "kind"), [("zimage", "diffusers"), ("klein", "single-file")])
def test_the_code_of_a_card_generates_an_image(export, folders, hub, tmp_path, family, kind):
    made = export(family, kind)
    hub.serve("owner/base", folders[family])
    hub.serve("me/cat", made.out)
    code = card_of(made, "owner/base").split("```python\n")[1].split("```")[0].replace("'cuda'", "'cpu'")
    code = code.replace(
        "pipe(prompt='a sks cat')", "pipe(prompt='a sks cat', num_inference_steps=2, height=16, width=16)"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "image.png").size == (16, 16)
    assert (f"transformer/{WEIGHTS}" in hub.fetched) == (kind == "diffusers")


def test_a_base_model_that_was_a_transformer_alone_is_opened_with_its_parts(export):
    text = card_of(export("klein", "lora", **LORA), "owner/files/klein.safetensors", "owner/base")
    lines = text.split("```python\n")[1].splitlines()
    assert "model = 'owner/base'" in lines
    assert "file = hf_hub_download('owner/files', 'klein.safetensors')" in lines
    assert "    file, config=model, subfolder='transformer', torch_dtype=torch.bfloat16" in lines


def test_a_card_names_the_family_and_nothing_of_clip(export):
    text = card_of(export("zimage", "diffusers"), "Tongyi-MAI/Z-Image")
    facts = yaml.safe_load(text.split("---\n")[1])
    assert {"z-image", "dreambooth", "text-to-image"} <= set(facts["tags"])
    assert facts["base_model"] == "Tongyi-MAI/Z-Image"
    assert "clip skip" not in text.lower()
    assert "float16)" not in text.replace("bfloat16", "")


def in_jaxbooth(folder: Path, mesh) -> np.ndarray:
    """An image of a folder, (h, w, 3) in 0..255."""
    pipeline = Pipeline.load(folder, "float32", mesh)
    height, width = SIZE
    [image] = pipeline.sample(PROMPT, 1, SEED, "", "euler", STEPS, GUIDANCE, height=height, width=width)
    return np.asarray(image, float)


def in_diffusers(folder: Path, lora: Path | None = None) -> np.ndarray:
    """The same image, from the same noise. Z-Image's pipeline counts guidance from 0, and the others from 1."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    if lora:
        pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    is_z_image = isinstance(pipe, diffusers.ZImagePipeline)
    factor, channels = (2, 4) if is_z_image else (4, 16)
    key = jax.random.fold_in(image_keys(jax.random.key(SEED), jnp.arange(1))[0], 0)
    noise = np.array(jax.random.normal(key, (1, SIZE[0] // factor, SIZE[1] // factor, channels)))
    image = pipe(
        prompt=PROMPT, height=SIZE[0], width=SIZE[1], latents=torch.from_numpy(noise).permute(0, 3, 1, 2),
        num_inference_steps=STEPS, guidance_scale=GUIDANCE - is_z_image, output_type="np",
    ).images[0]  # fmt: skip
    return 255 * image


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_generates_the_same_image_with_the_folder_and_with_each_lora_file(export, folders, mesh, family):
    merged = export(family, "diffusers", "float32", spread=0.5, **LORA)
    loras = export(family, "lora", spread=0.5, **LORA)
    ours = in_jaxbooth(merged.out, mesh)
    assert ours.shape == (*SIZE, 3)
    assert ours.std() > 10
    assert np.abs(ours - in_diffusers(folders[family])).max() > 10  # the LoRA does something
    assert np.abs(ours - in_diffusers(merged.out)).max() <= 2
    files = sorted(loras.out.glob("*.safetensors"))
    assert [file.name for file in files] == ["lora_comfyui.safetensors", "pytorch_lora_weights.safetensors"]
    for file in files:
        assert np.abs(ours - in_diffusers(folders[family], file)).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_generates_the_same_image_with_a_lokr(export, folders, mesh, family):
    lokr = {"lora": {"rank": 2, "alpha": 3.0, "kind": "lokr", "targets": "attention+ff"}}
    merged = export(family, "diffusers", "float32", spread=0.6, **lokr)
    adapters = export(family, "lokr", spread=0.6, **lokr)
    ours = in_jaxbooth(merged.out, mesh)
    assert ours.std() > 10
    assert np.abs(ours - in_diffusers(folders[family])).max() > 10  # the LoKr does something
    assert np.abs(ours - in_diffusers(folders[family], adapters.out / "pytorch_lora_weights.safetensors")).max() <= 2
