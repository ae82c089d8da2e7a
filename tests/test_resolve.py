"""From what a user calls a model to a plain diffusers folder."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import RunFailure, UserError
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


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))


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
