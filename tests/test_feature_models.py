"""Finding a CLIP or a DINO: local folders, the Hub, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jaxbooth.assets import DEMO_CLIP, DEMO_MODEL
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.metrics.feature_models import CLIP, DINO, find_files
from jaxbooth.metrics.features import load_clip, load_dino
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.source import Source
from tests.feature_model_folders import save_clip, save_dino, save_dinov2

pytest_plugins = ["tests.hub_server"]

WEIGHTS = "model.safetensors"
NEEDED = {"config.json", "preprocessor_config.json", "merges.txt", "vocab.json", "tokenizer_config.json",
          "special_tokens_map.json", WEIGHTS}  # fmt: skip
CLUTTER = dict.fromkeys(["README.md", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "onnx/model.onnx",
                         "open_clip_model.safetensors"], b"not needed")  # fmt: skip


def pickled(folder: Path) -> Path:
    """Turns a folder's safetensors into PyTorch's own format."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


# The Hub


def test_only_what_is_read_is_fetched(hub, tmp_path):
    hub.serve("a/clip", save_clip(tmp_path / "clip"), **CLUTTER)
    folder = find_files(CLIP, Source("a/clip")).folder
    assert set(hub.fetched) == NEEDED
    assert {path.name for path in folder.iterdir()} == NEEDED


def test_a_revision_is_fetched_and_found_again_offline(hub, mesh, tmp_path):
    hub.serve("a/dino", save_dino(tmp_path / "first"))
    hub.serve("a/dino", save_dinov2(tmp_path / "second"), "v2")
    assert find_files(DINO, Source("a/dino", revision="v2")).config["model_type"] == "dinov2"
    hub.stop()
    local = load_dino(Source(str(tmp_path / "second")), mesh)
    cached = load_dino(Source("a/dino", revision="v2", offline=True), mesh)
    assert cached.fingerprint == local.fingerprint
    with pytest.raises(RunFailure, match=r"DINO a/other is neither a local path nor in the cache .* --offline is set"):
        load_dino(Source("a/other", offline=True), mesh)


def test_the_token_opens_a_gated_extractor(hub, tmp_path, monkeypatch):
    hub.serve("a/clip", save_clip(tmp_path / "clip"))
    hub.gated.add("a/clip")
    with pytest.raises(UserError, match="CLIP a/clip asks for its licence to be accepted"):
        find_files(CLIP, Source("a/clip"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert find_files(CLIP, Source("a/clip")).config["model_type"] == "clip"


def test_another_model_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    hub.serve("a/dino", save_dino(tmp_path / "dino"))
    with pytest.raises(UserError, match="--clip a/dino holds ViTModel"):
        find_files(CLIP, Source("a/dino"))
    assert set(hub.fetched) == {"config.json"}


def test_a_repository_of_another_layout_is_refused(hub):
    hub.serve("a/model", DEMO_MODEL)
    with pytest.raises(UserError, match=r"--clip a/model has no config\.json, so it is no CLIP; it holds .*unet"):
        find_files(CLIP, Source("a/model"))


def test_pickles_alone_are_fetched_only_if_asked_for(hub, mesh, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    hub.serve("a/dino", pickled(save_dino(tmp_path / "dino")))
    with pytest.raises(UserError, match=r"pytorch_model\.bin and no safetensors: a pickle.*--allow-pickle"):
        load_dino(Source("a/dino"), mesh)
    image = np.zeros((40, 40, 3), np.uint8)
    found = load_dino(Source("a/dino", allow_pickle=True), mesh).image_features([image])
    expected = load_dino(Source(str(save_dino(tmp_path / "plain"))), mesh).image_features([image])
    np.testing.assert_array_equal(found, expected)


# Local folders


def test_the_embedded_clip_shares_the_embedded_tokenizer():
    files = find_files(CLIP, Source("demo"))
    assert (files.folder, files.weights, files.tokenizer) == (DEMO_CLIP, DEMO_CLIP, DEMO_MODEL / "tokenizer")


def test_a_pickle_on_the_disk_is_named_with_what_to_do(mesh, tmp_path):
    folder = pickled(save_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match=r"--clip: .*pytorch_model\.bin is a pickle.*no safetensors.*--allow-pickle"):
        load_clip(Source(str(folder)), mesh)


def other_models() -> dict[str, dict]:
    """Returns configurations of models that are no extractors of the kind that they are taken for."""
    return {
        "BertModel": transformers.BertConfig(architectures=["BertModel"]).to_dict(),
        "SiglipModel": transformers.SiglipConfig(architectures=["SiglipModel"]).to_dict(),
        "CLIPTextModel": read_json(DEMO_MODEL / "text_encoder" / "config.json"),
        "UNet2DConditionModel": read_json(DEMO_MODEL / "unet" / "config.json"),
    }


@pytest.mark.parametrize("name", ["BertModel", "SiglipModel", "CLIPTextModel", "UNet2DConditionModel"])
def test_a_folder_of_another_architecture_is_refused_in_one_sentence(name, mesh, tmp_path):
    write_json(tmp_path / "config.json", other_models()[name])
    for flag, opened, wanted in (("--clip", load_clip, "CLIPModel"), ("--dino", load_dino, "ViTModel or Dinov2Model")):
        with pytest.raises(UserError) as error:
            opened(Source(str(tmp_path)), mesh)
        text = str(error.value)
        assert text.startswith(f"{flag} {tmp_path} holds {name} (model_type ")
        assert f"not {wanted}; {flag} takes a" in text


def test_a_classifier_is_no_dino(mesh, tmp_path):
    raw = transformers.ViTConfig(architectures=["ViTForImageClassification"]).to_dict()
    write_json(tmp_path / "config.json", raw)
    with pytest.raises(UserError, match="holds ViTForImageClassification"):
        load_dino(Source(str(tmp_path)), mesh)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (CLIP, str(DEMO_MODEL), "holds a diffusers pipeline, and no CLIP; name one, such as openai/"),
        (CLIP, str(DEMO_MODEL / "scheduler"), r"holds no config\.json, and no CLIP"),
        (CLIP, "gone", "--clip gone: no such folder, and not a Hub id"),
        (CLIP, "./gone/clip", r"--clip \./gone/clip: no such folder"),
        (CLIP, str(DEMO_CLIP / "config.json"), "no such folder"),
        (DINO, "demo", "--dino demo: no DINO is embedded; name a folder or a Hub id, such as facebook/dino-vits16"),
    ],
)
def test_what_is_no_extractor_is_named(kind, name, message):
    with pytest.raises(UserError, match=message):
        find_files(kind, Source(name))


def test_a_revision_of_a_local_folder_is_refused():
    with pytest.raises(UserError, match="revision v1 does not apply to --clip demo"):
        find_files(CLIP, Source("demo", revision="v1"))


def test_a_folder_without_weights_is_named(mesh, tmp_path):
    folder = save_dino(tmp_path / "dino")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"--dino: .*dino holds no weights \(model\.safetensors\)"):
        load_dino(Source(str(folder)), mesh)


def test_tensors_that_do_not_fit_are_listed(mesh, tmp_path):
    folder = save_dino(tmp_path / "dino")
    tensors = load_file(folder / WEIGHTS)
    del tensors["layernorm.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"do not fit its config\.json: 1 missing \(layernorm\.weight\)"):
        load_dino(Source(str(folder)), mesh)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("preprocessor_config.json", "crop_size", 24, "makes images of 24x24 pixels, but .* asks for 32x32"),
        ("config.json", "vision_config", {"num_channels": 1}, "num_channels 1 is not supported"),
        ("config.json", "vision_config", [1], "vision_config is not a JSON object"),
        ("config.json", "text_config", {"vocab_size": 99}, "has 2246 tokens, but the text encoder knows 99"),
        ("config.json", "text_config", {"rope": 1}, "text_config: rope = 1 is not supported"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(file, key, value, message, mesh, tmp_path):
    folder = save_clip(tmp_path / "clip")
    write_json(folder / file, read_json(folder / file) | {key: value})
    with pytest.raises(UserError, match=message) as error:
        load_clip(Source(str(folder)), mesh)
    assert str(folder) in str(error.value)
