"""Pushing to the Hub, against a loopback server, and the card that goes with it."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.export.export import FORMATS
from jaxbooth.export.lora import PEFT_FILE
from jaxbooth.export.model_card import CardContent, model_card
from jaxbooth.export.upload import upload_folder
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.embeddings import EMBEDDINGS_FILE

pytest_plugins = ["tests.hub_server"]

FACTS = CardContent(
    repo="me/sks-cat", base_model="a/model", format=FORMATS["diffusers"], name="cat", family=FAMILIES["sd15"],
    instance_prompts=("a photo of sks cat",), class_prompts=("a photo of a cat",),
    settings={"steps": 800, "text|images": "a|b"}, image="samples.png",
    prior={"images": 200, "sampler": "ddpm"}, prior_terms="class-images 1", license="mit",
)  # fmt: skip


@pytest.fixture
def export(tmp_path):
    """A small folder to push."""
    folder = tmp_path / "export"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes.txt").write_text("of no interest to others")
    return folder


def test_a_push_writes_the_files_and_the_card_into_a_private_repository(hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    card = model_card(FACTS)
    assert upload_folder(export, "me/sks-cat", card) == f"{hub.url}/me/sks-cat"
    assert hub.repositories["me/sks-cat"].private
    assert hub.repositories["me/sks-cat"].revisions["main"] == {
        "README.md": card.encode(), "unet/config.json": b"{}", "unet/model.safetensors": b"weights" * 1000,
    }  # fmt: skip
    assert not (export / "README.md").exists()
    assert sum("/commit/" in path for _, path, _ in hub.requests) == 1


def test_a_private_push_does_not_go_to_a_public_repository(hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    upload_folder(export, "me/open", model_card(FACTS), private=False)
    assert not hub.repositories["me/open"].private
    with pytest.raises(UserError, match="me/open exists and is public"):
        upload_folder(export, "me/open", "another card")
    assert hub.repositories["me/open"].revisions["main"]["README.md"] == model_card(FACTS).encode()


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [("sks-cat", "hf_good", "sks-cat is not a repository on the Hub; expected OWNER/NAME"),
     ("me/sks/cat", "hf_good", "me/sks/cat is not a repository"),
     ("me/sks-cat", None, "me/sks-cat needs a token with write access: run `hf auth login` or set HF_TOKEN"),
     ("me/sks-cat", "hf_expired", "the Hub refused the token"),
     ("you/sks-cat", "hf_good", "the token .* does not give access")],
)  # fmt: skip
def test_a_push_that_is_not_allowed_says_why_and_uploads_nothing(hub, export, monkeypatch, repo, token, message):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        upload_folder(export, repo, model_card(FACTS))
    assert not hub.large
    assert not hub.repositories


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_the_hub_shows():
    facts = front_matter(model_card(FACTS))
    assert facts == {
        "base_model": "a/model", "library_name": "diffusers", "license": "mit", "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "dreambooth", "stable-diffusion"],
        "instance_prompt": "a photo of sks cat",
        "widget": [{"text": "a photo of sks cat", "output": {"url": "samples.png"}}],
    }  # fmt: skip


def test_a_card_of_a_lora_on_a_local_model_does_not_show_its_path():
    lora = replace(FACTS, format=FORMATS["lora"], family=FAMILIES["sdxl"])
    card = model_card(replace(lora, base_model="/mnt/sdxl", license=None))
    assert front_matter(card)["tags"][-3:] == ["stable-diffusion-xl", "lora", "template:sd-lora"]
    assert front_matter(card)["license"] == "other"
    assert "base_model" not in front_matter(card)
    assert "/mnt" not in card


def test_a_card_lists_prompts_settings_and_how_the_prior_was_made():
    card = model_card(FACTS)
    for line in ("# sks-cat", "![Images generated with this model](samples.png)", "- class: `a photo of a cat`",
                 "| steps | `800` |", r"| text\|images | `a\|b` |", "| sampler | `ddpm` |"):  # fmt: skip
        assert line in card.splitlines()
    assert "Trained without a prior term." in model_card(replace(FACTS, prior={}, prior_terms="none"))


def test_the_code_in_a_card_generates_an_image_with_diffusers(hub, tmp_path):
    """A LoRA of nothing with a placeholder token of two vectors, as a reader of its card loads it."""
    shapes = {"A": (1, 128, 1, 1), "B": (128, 1, 1, 1)}
    adapter = {f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight": np.zeros(shape, np.float32)
               for side, shape in shapes.items()}  # fmt: skip
    rows = save({"<cat>": np.ones((2, 128), np.float32)})
    files = {PEFT_FILE: save(adapter), EMBEDDINGS_FILE: rows}
    hub.serve("a/model", DEMO_MODEL)
    hub.serve("me/lora", tmp_path, **files)
    facts = replace(FACTS, repo="me/lora", format=FORMATS["lora"], instance_prompts=("a <cat>",))
    card = model_card(replace(facts, tokens=["<cat>"]))
    code = card.split("```python\n")[1].split("```")[0].replace("'cuda'", "'cpu'").replace("float16", "float32")
    code = code.replace("'a <cat>'", "'a <cat>', num_inference_steps=1")
    check = "assert {'<cat>', '<cat>_1'} <= set(pipe.tokenizer.get_vocab()); assert pipe.get_active_adapters()"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code + check], env=os.environ | settings, cwd=tmp_path, check=True)
    assert (tmp_path / "image.png").exists()
