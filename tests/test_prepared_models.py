"""Models that are no plain diffusers folder become one: variants, pickles, single files, other prediction types."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.weights import prepare
from jaxbooth.weights.diffusers_read import weight_files
from jaxbooth.weights.ldm.read import convert_single_file
from jaxbooth.weights.ldm.write import write_single_file
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source

from .small_models import bare

pytest_plugins = ["tests.hub_server"]
UNET, VAE, TEXT = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where prepared models go."""
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model, to be changed."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "my model"))


def single(file: Path) -> dict[str, np.ndarray]:
    """Returns a weight file's tensors in float32, which tells them from the originals."""
    return {name: tensor.astype(np.float32) for name, tensor in load_file(file).items()}


def dtypes(folder: Path) -> set[str]:
    """Returns the dtypes of the weights that a component's reader finds."""
    return {str(tensor.dtype) for file in weight_files(folder) for tensor in load_file(folder / file).values()}


def save_pickle(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a `.bin`."""
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path)


def shard(folder: Path, tensors: dict[str, np.ndarray], names: list[str], index: str, save=save_file) -> None:
    """Writes a component's weights as shards."""
    parts = {name: dict(list(tensors.items())[number :: len(names)]) for number, name in enumerate(names)}
    for name, part in parts.items():
        save(part, folder / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


# Variants


def test_a_variant_is_taken_by_the_components_that_have_it(model, cache):
    save_file(single(model / "unet" / UNET), model / "unet" / "diffusion_pytorch_model.fp32.safetensors")
    folder = resolve_model(Source(str(model), variant="fp32"))
    assert folder.parent == cache
    assert [path.name for path in (folder / "unet").iterdir() if path.suffix == ".safetensors"] == [UNET]
    assert {part: dtypes(folder / part) for part in ("unet", "vae")} == {"unet": {"float32"}, "vae": {"float16"}}
    assert BaseModel.read(folder).denoiser.shapes == BaseModel.read(DEMO_MODEL).denoiser.shapes
    assert dtypes(resolve_model(str(model)) / "unet") == {"float16"}


def test_a_variant_that_is_not_there_names_those_that_are(model):
    (model / "unet" / UNET).rename(model / "unet" / "diffusion_pytorch_model.fp32.safetensors")
    assert resolve_model(str(model)) == model
    with pytest.raises(UserError, match=r"has no variant bf16; it has fp32\."):
        resolve_model(Source(str(model), variant="bf16"))
    shutil.copy(model / "vae" / VAE, model / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(UserError, match="unet holds the variants fp32 and non_ema; choose one with --variant"):
        resolve_model(str(model))


@pytest.mark.parametrize(
    ("shards", "index"),
    [("model.fp32-{}-of-00002.safetensors", "model.safetensors.index.fp32.json"),
     ("model-{}-of-00002.fp32.safetensors", "model.safetensors.fp32.index.json")],
)  # fmt: skip
@pytest.mark.parametrize("asked", ["fp32", None])
def test_shards_of_a_variant_become_plain_ones(model, shards, index, asked):
    tensors = single(model / "text_encoder" / TEXT)
    (model / "text_encoder" / TEXT).unlink()
    shard(model / "text_encoder", tensors, [shards.format("00001"), shards.format("00002")], index)
    folder = resolve_model(Source(str(model), variant=asked)) / "text_encoder"
    files = weight_files(folder)
    assert list(files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert {name for names in files.values() for name in names} == set(tensors)
    assert dtypes(folder) == {"float32"}


# The prepared folder


def test_a_prepared_folder_is_made_once_and_again_when_its_original_changes(model, cache):
    source = Source(str(model), prediction_type="v_prediction")
    first = resolve_model(source)
    assert first.name.startswith("my model-")
    made = (first / "scheduler" / "scheduler_config.json").stat().st_mtime_ns
    assert resolve_model(source) == first
    assert (first / "scheduler" / "scheduler_config.json").stat().st_mtime_ns == made
    (model / "unet" / "config.json").write_text((model / "unet" / "config.json").read_text() + "\n")
    assert resolve_model(source) != first
    assert len(list(cache.iterdir())) == 2


def test_a_prediction_type_changes_the_schedule_alone_and_copies_no_weights(model):
    folder = resolve_model(Source(str(model), prediction_type="v_prediction"))
    changed = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    original = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    assert changed == original | {"prediction_type": "v_prediction"}
    assert BaseModel.read(folder).schedule.prediction_type == "v"
    assert (folder / "unet").resolve() == model / "unet"


def test_pickled_weights_are_converted_only_when_asked(model):
    tensors = load_file(model / "unet" / UNET)
    (model / "unet" / UNET).unlink()
    save_pickle(tensors, model / "unet" / "diffusion_pytorch_model.bin")
    assert resolve_model(str(model)) == model  # whose reader says what is wrong
    folder = resolve_model(Source(str(model), allow_pickle=True))
    assert [path.suffix for path in sorted((folder / "unet").iterdir())] == [".json", ".safetensors"]
    assert bare(folder / "unet" / UNET) == bare(DEMO_MODEL / "unet" / UNET)


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_pickled_shards_are_converted_with_their_index(model, variant):
    tensors = load_file(model / "text_encoder" / TEXT)
    (model / "text_encoder" / TEXT).unlink()
    names = [f"pytorch_model{variant}-0000{part}-of-00002.bin" for part in (1, 2)]
    shard(model / "text_encoder", tensors, names, f"pytorch_model.bin.index{variant}.json", save=save_pickle)
    folder = resolve_model(Source(str(model), allow_pickle=True)) / "text_encoder"
    files = weight_files(folder)
    assert list(files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = {name: value for file in files for name, value in bare(folder / file).items()}
    assert found == bare(DEMO_MODEL / "text_encoder" / TEXT)


def test_a_conversion_that_fails_leaves_nothing(model, cache):
    (model / "unet" / UNET).unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not a pickle")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin cannot be read"):
        resolve_model(Source(str(model), allow_pickle=True))
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(model, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(RunFailure, match=r"taken/models cannot be written \(.+\); set JAXBOOTH_CACHE"):
        resolve_model(Source(str(model), prediction_type="v_prediction"))


@pytest.fixture
def single_file(tmp_path, monkeypatch) -> Path:
    """The embedded model as one file; its architecture is not among those that a file is told by, so it is given."""
    monkeypatch.setattr(prepare, "convert_single_file", partial(convert_single_file, skeleton=DEMO_MODEL))
    write_single_file(DEMO_MODEL, {}, tmp_path / "cat v1.safetensors")
    return tmp_path / "cat v1.safetensors"


def test_one_file_is_converted_once(single_file, capsys):
    folder = resolve_model(str(single_file))
    assert folder.name.startswith("cat v1-")
    assert f"cat v1.safetensors (0.02 GB) is converted once, into {folder.parent}." in capsys.readouterr().out
    for part in ("unet/" + UNET, "vae/" + VAE, "text_encoder/" + TEXT):
        assert bare(folder / part) == bare(DEMO_MODEL / part)
    assert resolve_model(str(single_file)) == folder
    assert not capsys.readouterr().out


def test_one_file_of_a_hub_repository_is_fetched_and_converted(single_file, hub, tmp_path):
    hub.serve("a/model", tmp_path / "none", **{"sub/v1.safetensors": single_file.read_bytes(), "v2.safetensors": b""})
    folder = resolve_model("a/model/sub/v1.safetensors")
    assert set(hub.fetched) == {"sub/v1.safetensors"}
    assert bare(folder / "unet" / UNET) == bare(DEMO_MODEL / "unet" / UNET)
    with pytest.raises(UserError, match=r"model a/model has no file v3\.safetensors; it holds sub/, v2\.safetensors"):
        resolve_model("a/model/v3.safetensors")


def test_one_file_is_converted_again_when_the_yaml_beside_it_or_the_converter_changes(single_file, monkeypatch):
    save_file(load_file(single_file), single_file)  # without metadata, which would say what it predicts
    first = resolve_model(str(single_file))
    assert BaseModel.read(first).schedule.prediction_type == "epsilon"
    single_file.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    assert BaseModel.read(resolve_model(str(single_file))).schedule.prediction_type == "v"
    single_file.with_suffix(".yaml").unlink()
    assert resolve_model(str(single_file)) == first
    monkeypatch.setattr(prepare, "LAYOUT_VERSION", prepare.LAYOUT_VERSION + 1)
    assert resolve_model(str(single_file)) != first


def test_of_two_processes_that_prepare_the_same_the_first_wins(model, cache):
    def build(folder: Path) -> None:
        folder.mkdir()
        (prepare.cached_folder([model], {}, Path.mkdir) / "first").touch()  # the other process, from beginning to end

    folder = prepare.cached_folder([model], {}, build)
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert list(cache.iterdir()) == [folder]
