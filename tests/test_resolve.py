"""From what a user calls a model to a plain diffusers folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.pipeline import Base
from jaxbooth.weights import prepared
from jaxbooth.weights.diffusers_dir import weight_files
from jaxbooth.weights.resolve import Source, resolve_model
from jaxbooth.weights.single_file import pack, unpack

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


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))


def single(file: Path) -> dict[str, np.ndarray]:
    """Returns a weight file's tensors in float32, which tells them from the originals."""
    return {name: tensor.astype(np.float32) for name, tensor in load_file(file).items()}


def dtypes(folder: Path) -> set[str]:
    """Returns the dtypes of the weights that a component's reader finds."""
    return {str(tensor.dtype) for file in weight_files(folder) for tensor in load_file(folder / file).values()}


def bare(file: Path) -> dict[str, bytes]:
    """Returns the content of each tensor of a file, under the name without a prefix that only some readers need."""
    return {name.removeprefix("text_model."): tensor.tobytes() for name, tensor in load_file(file).items()}


def shard(folder: Path, tensors: dict[str, np.ndarray], names: list[str], index: str) -> None:
    """Writes a component's weights as shards."""
    parts = {name: dict(list(tensors.items())[number :: len(names)]) for number, name in enumerate(names)}
    for name, part in parts.items():
        save_file(part, folder / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


# Names


def test_a_folder_that_needs_nothing_is_used_where_it_is(model, cache, no_network):
    assert resolve_model("demo") == DEMO_MODEL
    assert resolve_model(str(model)) == model
    assert resolve_model(Source(str(model), prediction_type="epsilon", allow_pickle=True)) == model
    assert not cache.exists()


@pytest.mark.parametrize("name", ["model", "./model", "/a/model", "~/model", "a/b/c", "a/b/c.txt"])
def test_a_name_of_nothing_is_no_reason_to_ask_the_hub(name, no_network):
    with pytest.raises(UserError, match=f"model {name}: no such folder or file, and not a Hub id"):
        resolve_model(name)


def test_options_that_would_do_nothing_are_refused(model, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"--revision v1 does not apply to model .*, which is not on the Hub"):
        resolve_model(Source(str(model), revision="v1"))
    with pytest.raises(UserError, match=r"--variant fp32 does not apply to model .*, which is one file"):
        resolve_model(Source(str(tmp_path / "model.safetensors"), variant="fp32"))


@pytest.mark.parametrize(
    ("file", "message"),
    [("a.safetensors", r"a\.safetensors is a file, but no safetensors that can be read"),
     ("a.png", r"a\.png is a file of a kind that jaxbooth does not read"),
     ("a.ckpt", r"a\.ckpt is a pickle, .* pass --allow-pickle")],
)  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, cache, file, message):
    (tmp_path / file).write_bytes(b"something")
    with pytest.raises(UserError, match=message):
        resolve_model(str(tmp_path / file))
    assert not list(cache.glob("*"))


# Variants


def test_a_variant_is_taken_by_the_components_that_have_it(model, cache):
    save_file(single(model / "unet" / UNET), model / "unet" / "diffusion_pytorch_model.fp32.safetensors")
    folder = resolve_model(Source(str(model), variant="fp32"))
    assert folder.parent == cache
    assert [path.name for path in (folder / "unet").iterdir() if path.suffix == ".safetensors"] == [UNET]
    assert {part: dtypes(folder / part) for part in ("unet", "vae")} == {"unet": {"float32"}, "vae": {"float16"}}
    assert Base.read(folder).unet.shapes == Base.read(DEMO_MODEL).unet.shapes
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
    assert Base.read(folder).schedule.prediction_type == "v"
    assert (folder / "unet").resolve() == model / "unet"


def test_pickled_weights_are_converted_only_when_asked(model):
    tensors = load_file(model / "unet" / UNET)
    (model / "unet" / UNET).unlink()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()},
               model / "unet" / "diffusion_pytorch_model.bin")  # fmt: skip
    assert resolve_model(str(model)) == model  # whose reader says what is wrong
    folder = resolve_model(Source(str(model), allow_pickle=True))
    assert [path.suffix for path in sorted((folder / "unet").iterdir())] == [".json", ".safetensors"]
    assert bare(folder / "unet" / UNET) == bare(DEMO_MODEL / "unet" / UNET)


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
    monkeypatch.setattr(prepared, "unpack", partial(unpack, skeleton=DEMO_MODEL))
    pack(DEMO_MODEL, {}, tmp_path / "cat v1.safetensors")
    return tmp_path / "cat v1.safetensors"


def test_one_file_is_converted_once(single_file, capsys, no_network):
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


# Another VAE


@pytest.fixture
def vae(tmp_path) -> Path:
    """A VAE's folder, with weights that are not the model's."""
    folder = Path(shutil.copytree(DEMO_MODEL / "vae", tmp_path / "parts" / "vae"))
    save_file({name: -tensor for name, tensor in load_file(folder / VAE).items()}, folder / VAE)
    return folder


@pytest.mark.parametrize("place", ["folder", "parent", "file", "hub"])
def test_another_vae_takes_the_place_of_the_models(model, vae, hub, place):
    hub.serve("a/vae", vae)
    name = {"folder": vae, "parent": vae.parent, "file": vae / VAE, "hub": "a/vae"}[place]
    folder = resolve_model(Source(str(model), vae=str(name)))
    assert bare(folder / "vae" / VAE) == bare(vae / VAE) != bare(model / "vae" / VAE)
    assert (folder / "unet").resolve() == model / "unet"


def test_a_vae_that_is_none_is_named(model, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"--vae .*photos is no VAE in diffusers layout: config\.json is missing"):
        resolve_model(Source(str(model), vae=str(tmp_path / "photos")))


# The Hub, and its cache without it


@pytest.fixture
def served(hub):
    """The embedded model as a/model."""
    hub.serve("a/model", DEMO_MODEL)
    return hub


def test_offline_takes_the_cache_and_asks_nothing(served):
    folder = resolve_model(Source("a/model", revision="main"))
    served.requests.clear()
    assert resolve_model(Source("a/model", offline=True)) == folder
    assert not served.requests


def test_offline_says_when_nothing_or_too_little_is_cached(model, served):
    with pytest.raises(RunFailure, match=r"model a/model is neither .* nor in the cache .*--offline is set"):
        resolve_model(Source("a/model", offline=True))
    resolve_model(Source(str(model), vae="a/model"))
    with pytest.raises(UserError, match=r"does not hold all that is needed, and --offline is set"):
        resolve_model(Source("a/model", offline=True))
    assert resolve_model(Source(str(model), vae="a/model", offline=True)).name.startswith("my model-")


def test_a_hub_that_is_down_is_no_obstacle_to_what_is_cached(served, capsys):
    folder = resolve_model("a/model")
    served.stop()
    assert resolve_model("a/model") == folder
    assert "the Hub could not be reached" in capsys.readouterr().out


@pytest.mark.parametrize("refuses_connections", [True, False])
def test_a_hub_that_is_down_is_a_failure_where_nothing_is_cached(served, refuses_connections):
    served.stop() if refuses_connections else setattr(served, "status", 503)
    with pytest.raises(RunFailure, match=r"model a/model is neither .* and the Hub could not be reached \(.+\)\.$"):
        resolve_model("a/model")


def test_the_environment_decides_endpoint_cache_and_token(served, tmp_path):
    served.gated.add("a/model")
    settings = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": served.token}
    code = "from jaxbooth.weights.resolve import resolve_model; print(resolve_model('a/model'))"
    environment = os.environ | settings | {"HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(tmp_path / "home" / "hub" / "models--a--model")
