"""The shipped families against PyTorch: every parameter's name and shape, token ids, and one UNet in full size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.diffusion.schedule import read_schedule
from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.params import ModuleDef, abstract_module
from jaxbooth.weights.architectures import PUBLISHED, PUBLISHED_NAMES, check_pipeline, family_of
from jaxbooth.weights.names import canonical, import_axes, torch_name
from jaxbooth.weights.skeleton import write_skeleton, write_tokenizer
from tests.conftest import initial
from tests.torch_parity import from_torch, relative_error, to_torch, torch_state

PARAMETERS = {
    ("sd15", "unet"): 859_520_964,
    ("sd15", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "unet"): 865_910_724,
    ("sd21", "vae"): 83_653_863,
    ("sd21", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "vae"): 83_653_863,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}


DIFFUSION, FLOW = ("sd15", "sd21", "sdxl"), ("zimage", "klein-4b", "klein-9b")


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_a_published_model_is_found_by_the_width_of_its_prompt_embeddings(name):
    published = PUBLISHED[name]
    spec = published.family.denoiser
    source = published.folder / spec.component / "config.json"
    width = read_config(spec.config, json.loads(source.read_text()), str(source)).text_width
    assert published.family.published_size(width) == name
    assert PUBLISHED[published.family.published_model(width) or ""] == published
    assert published.family.published_model(width + 1) is None


def in_torch(config: Mapping[str, Any]) -> torch.nn.Module:
    """The module that a component's `config.json` describes, without memory for its weights."""
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        return getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))


def in_jaxbooth(config: Mapping[str, Any], component: str) -> ModuleDef:
    """The same module's description."""
    if component == "unet":
        unet = read_config(UNetConfig, config, "unet/config.json")
        return abstract_module(lambda rngs: UNet2DConditionModel(unet, Layers(rngs)))
    if component == "vae":
        vae = read_config(VAEConfig, config, "vae/config.json")
        return abstract_module(lambda rngs: AutoencoderKL(vae, Layers(rngs)))
    text = read_config(CLIPTextConfig, config, f"{component}/config.json")
    projection = config["architectures"] == ["CLIPTextModelWithProjection"]
    return abstract_module(lambda rngs: CLIPTextModel(text, Layers(rngs), projection=projection))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter in PyTorch's layout."""
    return tuple(shape[axis] for axis in np.argsort(import_axes(name, len(shape))))


@pytest.mark.parametrize(("family", "component"), PARAMETERS, ids=["-".join(key) for key in PARAMETERS])
def test_every_name_and_shape_is_pytorchs(family, component):
    config = read(PUBLISHED[family].folder / component / "config.json")
    theirs = {canonical(name): tuple(tensor.shape) for name, tensor in in_torch(config).state_dict().items()}
    network = in_jaxbooth(config, component)
    ours = {torch_name(name): stored_shape(name, leaf.shape) for name, leaf in network.shapes.items()}
    assert ours == theirs
    assert sum(leaf.size for leaf in network.shapes.values()) == PARAMETERS[family, component]


@pytest.fixture(scope="module", params=PUBLISHED_NAMES)
def skeleton(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    write_skeleton(request.param, folder)
    return request.param, folder


def open_part(folder: Path, library: str, kind: str) -> Any:
    if (folder / "config.json").exists():
        return in_torch(read(folder / "config.json"))
    if not folder.exists():  # the tokenizer of a language model is not shipped
        return None
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], kind).from_pretrained(folder)


def test_diffusers_builds_the_pipeline_of_a_skeleton(skeleton):
    _, folder = skeleton
    index = read(folder / "model_index.json")
    named = {key: value for key, value in index.items() if isinstance(value, list)}
    parts = {key: open_part(folder / key, *value) if any(value) else None for key, value in named.items()}
    settings = {key: value for key, value in index.items() if key not in named and not key.startswith("_")}
    pipeline = getattr(diffusers, index["_class_name"])(**parts, **settings)
    assert {key for key, part in parts.items() if part} == {path.name for path in folder.iterdir() if path.is_dir()}
    assert pipeline.vae_scale_factor == 8


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_schedules_are_the_published_ones(name):
    schedule = read_schedule(read(PUBLISHED[name].folder / "scheduler" / "scheduler_config.json"))
    assert schedule.prediction_type == ("v" if name == "sd21" else "epsilon")
    assert schedule.steps_offset == 1
    np.testing.assert_allclose(schedule.alphas_cumprod[[0, -1]], [1 - 0.00085, 0.0046601], rtol=1e-4)


@pytest.mark.parametrize("name", FLOW)
def test_the_schedules_of_flow_models_are_those_of_diffusers_scheduler(name):
    folder = PUBLISHED[name].folder / "scheduler"
    schedule = read_schedule(read(folder / "scheduler_config.json"))
    reference = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    assert schedule.prediction_type == "flow"
    np.testing.assert_allclose(schedule.sigmas, reference.sigmas.numpy()[::-1], rtol=1e-6)


@pytest.mark.parametrize("name", DIFFUSION)
def test_prompts_are_padded_with_the_familys_token(name, tmp_path):
    write_skeleton(name, tmp_path)
    pads = {}
    for part in sorted(tmp_path.glob("tokenizer*")):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(part)
        ids = tokenizer("a photo of sks dog", padding="max_length").input_ids
        assert ids[:7] == [49406, 320, 1125, 539, 48136, 1929, 49407]
        assert len(ids) == 77
        pads[part.name] = set(ids[7:])
    expected = {
        "sd15": {"tokenizer": {49407}},
        "sd21": {"tokenizer": {0}},
        "sdxl": {"tokenizer": {49407}, "tokenizer_2": {0}},
    }
    assert pads == expected[name]


def test_a_skeleton_never_replaces_files(tmp_path):
    (tmp_path / "model_index.json").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_skeleton("sd15", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> transformers.CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


# Ids of OpenCLIP's own `SimpleTokenizer`.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, World!! It's 3D", [3306, 267, 1002, 748, 585, 568, 274, 323]),
        ("don't can't I'll we've", [847, 713, 753, 713, 328, 1342, 649, 1200]),
        ("über naïve ÉCOLE", [6522, 1516, 1097, 35689, 563, 3459, 8166]),
        ("日本語 テスト", [39121, 44353, 34002, 508, 2429, 228, 32421, 486]),
        ("Straße İstanbul", [1894, 127, 253, 324, 328, 16384, 11231]),
        ("🐶🎉 emoji", [14466, 3986, 16327]),
        ("a_b-c/d\\e", [320, 318, 321, 268, 322, 270, 323, 315, 324]),
        ("1234  56.7", [272, 273, 274, 275, 276, 277, 269, 278]),
        ("(sks:1.2)\t[dog]\n", [263, 48136, 281, 272, 269, 273, 264, 314, 1929, 316]),
    ],
)
def test_token_ids_are_clips(tokenizer, text, ids):
    assert tokenizer(text).input_ids == [49406, *ids, 49407]


def test_the_vocabulary_has_clips_order(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 49408
    assert sorted(vocabulary.values()) == list(range(49408))
    landmarks = {"!": 0, "Ń": 255, "!</w>": 256, "in": 512, "jekyll</w>": 49405, "<|startoftext|>": 49406}
    assert {token: vocabulary[token] for token in landmarks} == landmarks


@pytest.mark.slow
def test_the_full_size_sd15_unet_equals_diffusers(rng):
    config = read(PUBLISHED["sd15"].folder / "unet" / "config.json")
    network = in_jaxbooth(config, "unet")
    params = {name: initial(name, leaf.shape, rng) for name, leaf in network.shapes.items()}
    sample = rng.normal(size=(1, 64, 64, 4)).astype(np.float32)
    text = rng.normal(size=(1, 77, 768)).astype(np.float32)
    reference = in_torch(config).eval()
    reference.load_state_dict(torch_state(params), assign=True)
    with torch.no_grad():
        expected = from_torch(reference(to_torch(sample), torch.tensor([500]), torch.tensor(text)).sample)
    del reference  # 3.4 GB
    found = jax.jit(lambda p: network.bind(p)(sample, np.array([500]), text))(params)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_a_family_is_recognised_by_its_own_configurations(name):
    folder, family = PUBLISHED[name].folder, PUBLISHED[name].family
    config = read(folder / family.denoiser.component / "config.json")
    assert family_of(read_config(family.denoiser.config, config, "config.json")) is family
    assert check_pipeline(read(folder / "model_index.json"), folder) == family.components
    assert PUBLISHED[family.published[name][0]] == PUBLISHED[name]
