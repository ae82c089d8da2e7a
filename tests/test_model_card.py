"""The model card of a run: its facts, its picture, and code that opens what was exported."""

import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.data.class_images import MANIFEST, generation_settings
from jaxbooth.export.model_card import run_model_card
from jaxbooth.runs.folder import RunFolder
from jaxbooth.storage.files import write_json
from jaxbooth.weights.diffusers_write import default_dtype
from jaxbooth.weights.embeddings import embedding_files

from .made_up_exports import ALONE, FULL, LORA, WORDS, Export, write_models
from .training import configure

pytest_plugins = ["tests.hub_server"]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run folder with sample grids of steps 0 and 50; the red one is newer."""
    folder = RunFolder(tmp_path / "run")
    for step, color in ((0, "blue"), (50, "red")):
        folder.samples(step).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), color).save(folder.samples(step))
    return folder


@pytest.fixture
def card(run, base, tmp_path):
    """Returns the card of a run on the embedded model."""
    out = tmp_path / "export"
    out.mkdir()

    def write(kind: str = "diffusers", step: int = 80, license: str | None = None, **settings) -> str:
        config = configured(run, **settings)
        return run_model_card(run, config, base, "me/sks-cat", kind, default_dtype(kind), step, license, out)

    return write


def configured(run: RunFolder, **settings) -> Config:
    model = settings.pop("model", "demo")
    config = configure((2, 1), **{"data": {"resolution": 64}, **settings})
    return config.model_copy(update={"model": model, "run_dir": run.root})


def cells(card: str) -> dict[str, str]:
    """Returns all rows of the card's tables, name -> value."""
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ") and "`" in line]
    return {name.removeprefix("| "): value.removesuffix(" |").strip("`") for name, value in rows}


def test_the_newest_sample_grid_is_the_cards_picture(card, tmp_path):
    assert "(samples.png)" in card()
    assert Image.open(tmp_path / "export" / "samples.png").getpixel((0, 0)) == (255, 0, 0)


def test_the_grid_of_the_exported_step_goes_first(card, tmp_path):
    card(step=0)
    assert Image.open(tmp_path / "export" / "samples.png").getpixel((0, 0)) == (0, 0, 255)


def test_a_run_without_grids_has_no_picture(card, run, tmp_path):
    for step in (0, 50):
        run.samples(step).unlink()
    assert "samples.png" not in card()
    assert not (tmp_path / "export" / "samples.png").exists()


def test_the_settings_of_a_full_fine_tuning(card):
    found = cells(card(**FULL))
    assert found | {
        "steps": "80", "batch": "2 instance + 1 prior", "learning rate": "0.0001", "resolution": "64",
        "text encoder": "trained", "prior weight": "1.0", "weighting": "uniform", "seed": "7",
    } == found  # fmt: skip
    assert not {"LoRA", "placeholder tokens", "clip skip"} & set(found)
    assert "jaxbooth" in found


def test_the_settings_of_a_lora_with_new_words(card):
    found = cells(card("lora", **LORA, **WORDS, loss={"weighting": "min_snr"}))
    assert found | {
        "LoRA": "rank 4, alpha 2", "LoRA targets": "attention+ff+conv", "placeholder tokens": "<sks>, <toy>",
        "vectors for each placeholder token": "2", "learning rate of placeholder tokens": "0.0005",
        "weighting": "min_snr (gamma 5)",
    } == found  # fmt: skip


def test_a_run_with_embeddings_alone_has_no_other_learning_rate(card):
    found = cells(card("embeddings", **ALONE))
    assert found["learning rate of placeholder tokens"] == "0.0005"
    assert "learning rate" not in found


def test_the_class_pictures_that_the_model_drew_are_described(card):
    text = card()
    assert "- class: `a cat`" in text
    assert cells(text) | {"drawn by the base model before training": "200", "sampler": "ddpm"} == cells(text)


@pytest.mark.parametrize(("drawn", "expected"), [(1, "1"), (0, None)])
def test_class_pictures_of_ones_own_are_not_said_to_be_drawn(card, run, base, drawn, expected):
    folder = run.root / "prior"
    folder.mkdir()
    for name in ["mine.png", *(["class-00000.png"] if drawn else [])]:
        Image.new("RGB", (64, 64)).save(folder / name)
    settings = generation_settings(configured(run), base, "a cat")
    write_json(folder / MANIFEST, {"settings": settings, "images": {"0": "class-00000.png"} if drawn else {}})
    found = cells(card())
    assert found["the trainer's own"] == "1"
    assert found.get("drawn by the base model before training") == expected
    assert ("sampler" in found) == bool(drawn)


def test_a_run_without_a_prior_says_so_and_names_no_class(card):
    text = card(prior_weight=0.0)
    assert "Trained without a prior term." in text
    assert "- class:" not in text


def test_the_licence_and_the_base_model_are_in_the_front_matter(card):
    facts = yaml.safe_load(card(license="mit", model="owner/base").split("---\n")[1])
    assert (facts["license"], facts["base_model"]) == ("mit", "owner/base")


def test_a_base_model_that_is_one_file_of_a_repository_is_opened_as_one(card):
    text = card("lora", model="owner/base/sd.safetensors", **LORA)
    assert "file = hf_hub_download('owner/base', 'sd.safetensors')" in text
    assert "StableDiffusionPipeline.from_single_file(file, torch_dtype=torch.float16)" in text
    assert "pipe.load_lora_weights('me/sks-cat', weight_name='pytorch_lora_weights.safetensors')" in text


def test_words_that_are_spelled_alike_have_files_of_their_own():
    assert embedding_files(["<sks>"]) == {"<sks>": "learned_embeds.safetensors"}
    assert embedding_files(["<sks>", "[sks]", "<toy>", "<+>"]) == {
        "<sks>": "learned_embeds_sks0.safetensors", "[sks]": "learned_embeds_sks1.safetensors",
        "<toy>": "learned_embeds_toy.safetensors", "<+>": "learned_embeds_3.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "kind", "settings"),
    [("sd", "embeddings", ALONE), ("sdxl-legacy", "single-file", FULL | WORDS)],
)
def test_the_code_of_a_card_draws_a_picture_with_the_new_words(family, kind, settings, hub, mesh, run, tmp_path):
    folders = write_models(tmp_path / "models")
    made = Export(BaseModel.read(folders[family], "float32"), mesh, tmp_path / "out", kind, "base", settings)
    config = configured(run, model="owner/base", **settings)
    base = add_trainable(BaseModel.read(folders[family]), config)
    text = run_model_card(run, config, base, "me/cat", kind, "base", 80, None, made.out)
    hub.serve("owner/base", folders[family])
    hub.serve("me/cat", made.out)
    code = text.split("```python\n")[1].split("```")[0].replace("'cuda'", "'cpu'").replace("float16", "float32")
    code = code.replace("pipe('a <sks> cat')", "pipe('a <sks> cat', num_inference_steps=2, height=16, width=16)")
    check = f"assert {set(config.text.placeholder_tokens)} <= set(pipe.tokenizer.get_vocab())\n"
    if family == "sdxl-legacy":
        check += "assert pipe.text_encoder_2.text_model.eos_token_id == pipe.tokenizer_2.eos_token_id\n"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code + check], env=environment, cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "picture.png").size == (16, 16)
