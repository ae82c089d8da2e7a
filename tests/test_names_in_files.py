"""Models, runs and repositories that name files outside of their folders: refused, and nothing is read or written."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.tokenizer_files import read_tokenizer
from jaxbooth.cli.sample_images import sample
from jaxbooth.errors import UserError
from jaxbooth.report.report import make_report
from jaxbooth.storage.files import new_folder, write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import weight_files
from jaxbooth.weights.diffusers_write import write_folder
from jaxbooth.weights.hub import download_file
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source

from .made_up_runs import evaluated, made_up_run

pytest_plugins = ["tests.hub_server"]
UNET = "diffusion_pytorch_model.safetensors"
OUTSIDE = ["/{folder}/victim/x.safetensors", "../../victim/x.safetensors", "sub/x.safetensors", "..", "x\\y", 7, None]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Prepared models go here."""
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def victim(tmp_path) -> Path:
    """Somebody's other fine-tune: a UNet that would load."""
    (tmp_path / "victim").mkdir()
    return Path(shutil.copy(DEMO_MODEL / "unet" / UNET, tmp_path / "victim" / "x.safetensors"))


def indexed(folder: Path, shard: object, index: str = f"{UNET}.index.json") -> Path:
    """Writes the embedded model with an index in place of its UNet's weights, all in `shard`."""
    shutil.copytree(DEMO_MODEL, folder)
    names = list(load_file(folder / "unet" / UNET))
    (folder / "unet" / UNET).unlink()
    write_json(folder / "unet" / index, {"metadata": {}, "weight_map": dict.fromkeys(names, shard)})
    return folder


def placed(shard: object, folder: Path) -> object:
    return shard.format(folder=str(folder).lstrip("/")) if isinstance(shard, str) else shard


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_that_names_a_shard_outside_of_its_folder_is_refused_wherever_it_is_read(
    shard, tmp_path, victim, params, mesh
):
    before, name = victim.read_bytes(), placed(shard, tmp_path)
    model = indexed(tmp_path / "model", name)
    sentence = rf"{re.escape(str(model / 'unet'))}/\S+ names {re.escape(ascii(name)[:40])}.* not a plain file name"
    out = tmp_path / "new" / "out"
    with pytest.raises(UserError, match=sentence):
        weight_files(model / "unet")
    with pytest.raises(UserError, match=sentence):
        load_params(BaseModel.read(model, "float32"), mesh)
    with pytest.raises(UserError, match=sentence):
        sample(str(model), "a cat", out)
    with pytest.raises(UserError, match=sentence), new_folder(out) as folder:
        write_folder(model, {"unet": params["unet"]}, folder)
    assert victim.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) in (["model", "victim"], ["model", "new", "victim"])
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize("shard", ["../../victim/x.fp32.safetensors", "/abs/x.fp32.safetensors", 7])
def test_a_variant_s_index_is_refused_before_the_cache_holds_anything_of_it(shard, tmp_path):
    model = indexed(tmp_path / "model", shard, "diffusion_pytorch_model.safetensors.index.fp32.json")
    with pytest.raises(UserError, match=r"index\.fp32\.json names .*not a plain file name"):
        resolve_model(Source(str(model), variant="fp32"))
    assert not list((tmp_path / "cache").rglob("unet"))


def test_shards_behind_symlinks_are_read_and_an_export_of_them_is_files_of_its_own(tmp_path, victim, params, mesh):
    model = indexed(tmp_path / "model", "part.safetensors")
    (model / "unet" / "part.safetensors").symlink_to(victim)
    before = victim.read_bytes()
    loaded = load_params(BaseModel.read(model, "float32"), mesh)
    np.testing.assert_array_equal(loaded["unet"]["conv_in.bias"], params["unet"]["conv_in.bias"])
    changed = params["unet"] | {"conv_in.bias": params["unet"]["conv_in.bias"] + 1}
    with new_folder(tmp_path / "out") as folder:
        write_folder(model, {"unet": changed}, folder)
    written = tmp_path / "out" / "unet" / "part.safetensors"
    assert not written.is_symlink()
    bias = params["unet"]["conv_in.bias"] + 1
    np.testing.assert_array_equal(load_file(written)["conv_in.bias"], bias.astype(np.float16))
    assert victim.read_bytes() == before


def test_an_index_may_leave_out_tensors_and_its_own_head(tmp_path, params, mesh):
    model = indexed(tmp_path / "model", "part.safetensors")
    shutil.copy(DEMO_MODEL / "unet" / UNET, model / "unet" / "part.safetensors")
    write_json(model / "unet" / f"{UNET}.index.json", {"weight_map": {"gone.weight": "part.safetensors"}})
    with new_folder(tmp_path / "out") as folder:
        write_folder(model, {"unet": params["unet"]}, folder)
    index = read_json(tmp_path / "out" / "unet" / f"{UNET}.index.json")
    tensors = load_file(tmp_path / "out" / "unet" / "part.safetensors")
    assert index["weight_map"] == dict.fromkeys(sorted(tensors), "part.safetensors")
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}


@pytest.mark.parametrize("part", ["../victim", "/etc", "a/b", "x" * 300])
def test_a_part_of_a_pipeline_outside_of_its_folder_is_refused(part, tmp_path):
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    write_json(model / "model_index.json", read_json(model / "model_index.json") | {part: ["diffusers", "VQModel"]})
    with pytest.raises(UserError, match=r"model_index\.json names .*not a plain file name"), \
            new_folder(tmp_path / "out") as folder:  # fmt: skip
        write_folder(model, {}, folder)
    assert not (tmp_path / "out").exists()


def test_only_the_files_of_a_folder_are_copied_into_an_export(tmp_path):
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    (model / "tokenizer" / "all").symlink_to("/")
    (model / "tokenizer" / "loop").symlink_to("loop")
    with new_folder(tmp_path / "out") as folder:
        write_folder(model, {}, folder)
    copied = {path.name for path in (tmp_path / "out" / "tokenizer").iterdir()}
    assert copied == {path.name for path in (DEMO_MODEL / "tokenizer").iterdir()}


@pytest.mark.parametrize("name", ["../../tokenizer.4.0.0.json", "/etc/tokenizer.4.0.0.json"])
def test_a_tokenizer_that_names_files_outside_of_its_folder_is_refused(name, tmp_path):
    folder = Path(shutil.copytree(DEMO_MODEL / "tokenizer", tmp_path / "tokenizer"))
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | {"fast_tokenizer_files": ["tokenizer.json", name]})
    with pytest.raises(UserError, match=r"tokenizer_config\.json names .*not a plain file name"):
        read_tokenizer(folder, 77, 49408)


@pytest.mark.parametrize("content", ["", "\n\n", "#version: 0.2\n"])
def test_a_tokenizer_without_its_merges_is_refused(content, tmp_path):
    folder = Path(shutil.copytree(DEMO_MODEL / "tokenizer", tmp_path / "tokenizer"))
    (folder / "merges.txt").write_text(content)
    with pytest.raises(UserError, match=r"merges\.txt holds no merges"):
        read_tokenizer(folder, 77, 49408)


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/outside.safetensors"])
def test_a_repository_that_lists_files_outside_of_itself_is_refused(name, hub, tmp_path):
    hub.serve("a/model", DEMO_MODEL, **{name: b"bad"})
    with pytest.raises(UserError, match="may lie outside its folder"):
        download_file("a/model", None, name, offline=False)
    assert not hub.fetched
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize("name", ["model [v1].safetensors", "a*.safetensors", "sub/b?.safetensors"])
def test_the_name_of_a_repository_s_file_is_no_pattern(name, hub):
    hub.serve("a/model", DEMO_MODEL, **{name: b"this one", "ab.safetensors": b"not", "model v.safetensors": b"not"})
    assert download_file("a/model", None, name, offline=False).read_bytes() == b"this one"
    assert set(hub.fetched) == {name}


@pytest.mark.parametrize("name", ["../../secret.png", "/secret.png"])
def test_a_report_shows_no_images_outside_of_the_evaluation(name, tmp_path):
    run = evaluated(made_up_run(tmp_path / "run"))
    path = run / "evaluation" / "evaluation.json"
    content = read_json(path)
    content["models"][0]["prompts"][0]["images"][0] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"evaluation\.json names .*may lie outside its folder"):
        make_report([run])


def test_a_shard_that_is_no_safetensors_is_refused(tmp_path):
    model = indexed(tmp_path / "model", "config.json")
    with pytest.raises(UserError, match=r"unet/config\.json cannot be read"):
        weight_files(model / "unet")
