"""What Z-Image and FLUX.2 klein do not do is refused by name; models that were distilled are told, and named once."""

import json
import shutil
from pathlib import Path

import pytest

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.runs.start_notes import warn_about_distillation
from tests.flow_models import FLOW_FAMILIES
from tests.small_models import write_model


@pytest.fixture
def changed(flow_folder, tmp_path):
    """A family's small model with other values in one of its files; weights are not read here."""

    def make(family: str, file: str, **values) -> Path:
        folder = shutil.copytree(
            flow_folder(family), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
        )
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | values))
        return folder

    return make


def refusal(folder: Path, clip_skip: int = 0, max_token_chunks: int = 1, **sections) -> str:
    """The message with which a model and a run's sections are refused."""

    def read() -> None:
        base = BaseModel.read(folder, "float32", clip_skip, max_token_chunks)
        add_trainable(base, Config.model_validate(sections))

    with pytest.raises(UserError) as error:
        read()
    return str(error.value)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_language_model_is_not_trained_and_has_no_options_of_clip(family, flow_folder):
    folder = flow_folder(family)
    never = "a language model that is run once and never trained"
    assert refusal(folder, train={"text_encoder": True}).startswith("--train.text-encoder: the text encoder of ")
    assert never in refusal(folder, train={"text_encoder": True})
    assert never in refusal(folder, text={"placeholder_tokens": ["<sks>"]})
    assert refusal(folder, clip_skip=1).startswith("--text.clip-skip is about CLIP")
    assert refusal(folder, max_token_chunks=2).startswith("--text.max-token-chunks is about CLIP")


@pytest.mark.parametrize(("family", "key"), [("zimage", "cap_feat_dim"), ("klein", "joint_attention_dim")])
def test_a_text_encoder_of_another_width_is_refused_by_the_transformers_key(family, key, changed):
    message = refusal(changed(family, "transformer/config.json", **{key: 96}))
    width = {"zimage": 24, "klein": 3 * 24}[family]
    assert f"transformer/config.json: {key} 96 does not fit the text encoder's width {width}; " in message
    assert message.endswith("must be of one model.")


def test_an_autoencoder_of_other_channels_is_refused(changed):
    message = refusal(changed("zimage", "transformer/config.json", in_channels=8))
    assert "in_channels 8 is not the VAE's 4" in message


def distilled(folder: Path, capsys) -> tuple[float, str]:
    """Returns the guidance of a model's images, and what a run says of it."""
    base = BaseModel.read(folder, "float32")
    warn_about_distillation(base.distillation)
    return base.sampling.guidance_scale, capsys.readouterr().out


def test_z_image_turbo_is_told_by_its_schedulers_shift(changed, capsys):
    guidance, said = distilled(changed("zimage", "scheduler/scheduler_config.json", shift=3.0), capsys)
    assert guidance == 1.0
    assert "warning: this model was distilled to 9 steps" in said
    assert "Tongyi-MAI/Z-Image" in said


def test_klein_says_itself_whether_it_was_distilled(changed, flow_folder, capsys):
    guidance, said = distilled(changed("klein", "model_index.json", is_distilled=True), capsys)
    assert guidance == 1.0
    assert said.count("warning: this model was distilled to 4 steps") == 1
    assert distilled(flow_folder("klein"), capsys) == (4.0, "")


def test_the_base_of_z_image_is_not_distilled(changed, capsys):
    assert distilled(changed("zimage", "scheduler/scheduler_config.json", shift=6.0), capsys) == (5.0, "")


def test_a_turbo_model_of_stable_diffusion_is_named_as_well(tmp_path, capsys):
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    guidance, said = distilled(write_model("sdxl", tmp_path / "model", **turbo), capsys)
    assert guidance == 1.0
    assert "stabilityai/stable-diffusion-xl-base-1.0" in said
