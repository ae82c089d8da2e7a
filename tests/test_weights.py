"""Diffusers folders, in and out."""

import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_CLIP, DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.sharding import make_mesh, param_shardings, partition_spec
from jaxbooth.storage.files import new_folder
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.diffusers_write import ComponentTensors, save_component, write_folder
from jaxbooth.weights.names import canonical, export_array, import_axes

UNET_FILE = "diffusion_pytorch_model.safetensors"


def load(folder: Path, base: BaseModel, mesh, component: str = "unet", dtype=np.float32) -> Params:
    return load_component(folder, base.module(component), param_shardings(mesh), dtype)


@pytest.fixture
def unet_folder(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL / "unet", tmp_path / "unet"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def export_folder(base: Path, params: dict[str, Params], out: Path, dtype="base") -> None:
    with new_folder(out) as folder:
        write_folder(base, params, folder, dtype)


def test_import_then_export_reproduces_every_byte(base, mesh, tmp_path):
    params = {name: load(DEMO_MODEL / name, base, mesh, name) for name in base.components}
    export_folder(DEMO_MODEL, params, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(DEMO_MODEL)


def shard_in_two(folder: Path) -> None:
    tensors = load_file(folder / UNET_FILE)
    (folder / UNET_FILE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for part, chunk in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chunk}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chunk, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"{UNET_FILE}.index.json").write_text(text)


def test_a_sharded_folder_loads_and_exports_like_a_single_file(base, mesh, params, unet_folder, tmp_path):
    shard_in_two(unet_folder)
    loaded = load(unet_folder, base, mesh)
    assert all((np.asarray(loaded[name]) == params["unet"][name]).all() for name in base.denoiser.shapes)
    out = tmp_path / "out"
    out.mkdir()
    save_component(ComponentTensors(unet_folder, jax.device_get(loaded)), out)
    shutil.copy(unet_folder / "config.json", out)
    assert files_of(out) == files_of(unet_folder)


def test_every_parameter_lands_on_its_shards(base, params):
    mesh = make_mesh(data=2, fsdp=4)
    loaded = load(DEMO_MODEL / "unet", base, mesh)
    for name, value in loaded.items():
        assert value.sharding.spec == partition_spec(name, value.shape, mesh)
        np.testing.assert_array_equal(value, params["unet"][name])
    assert loaded["mid_block.resnets.0.conv1.kernel"].sharding.shard_shape((3, 3, 128, 128)) == (3, 3, 32, 128)


@pytest.mark.parametrize("dtype", ["base", "float32", "bfloat16"])
def test_a_dtype_is_that_of_all_components_also_of_untouched_ones(dtype, params, tmp_path):
    export_folder(DEMO_MODEL, {"unet": params["unet"]}, tmp_path / "out", dtype)
    for path in sorted(DEMO_MODEL.rglob("*.safetensors")):
        found, expected = load_file(tmp_path / "out" / path.relative_to(DEMO_MODEL)), load_file(path)
        assert {str(tensor.dtype) for tensor in found.values()} == {"float16" if dtype == "base" else dtype}
        assert all((found[name] == tensor.astype(found[name].dtype)).all() for name, tensor in expected.items())


def test_weights_of_any_variant_are_exported_under_the_name_that_readers_look_for(params, tmp_path):
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    for part in ("unet", "vae"):
        shutil.copy(DEMO_MODEL / part / UNET_FILE, model / part / UNET_FILE.replace(".", ".fp32.", 1))
    shutil.copy(DEMO_MODEL / "text_encoder" / "model.safetensors", model / "text_encoder" / "model.ema.safetensors")
    export_folder(model, {"unet": params["unet"]}, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(DEMO_MODEL)


def test_an_index_beside_a_single_file_is_left_out(params, tmp_path):
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    for part in ("unet", "vae"):
        (model / part / f"{UNET_FILE}.index.json").write_text("{}")
    export_folder(model, {"unet": params["unet"]}, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(DEMO_MODEL)


def test_a_folder_that_is_no_part_of_the_pipeline_is_neither_read_nor_exported(params, tmp_path):
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    shutil.copytree(DEMO_CLIP, model / "clip")
    assert BaseModel.read(model, "float32").components == ("unet", "vae", "text_encoder")
    export_folder(model, {"unet": params["unet"]}, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(DEMO_MODEL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_writes_the_dtype_that_is_asked_for(dtype, base, mesh, params, tmp_path):
    export_folder(DEMO_MODEL, {"unet": params["unet"]}, tmp_path / "out", dtype)
    found = load_file(tmp_path / "out" / "unet" / UNET_FILE)["conv_in.weight"]
    assert found.dtype == {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    np.testing.assert_array_equal(found, export_array("conv_in.kernel", params["unet"]["conv_in.kernel"]).astype(dtype))


def test_export_never_overwrites(params, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        export_folder(DEMO_MODEL, {"unet": params["unet"]}, tmp_path / "out")
    assert files_of(tmp_path) == {"out/mine.txt": b"keep"}


def test_a_failed_export_leaves_nothing(params, tmp_path):
    broken = params["unet"] | {"conv_in.kernel": params["unet"]["conv_in.kernel"].swapaxes(0, 2)}
    with pytest.raises(ValueError, match=r"conv_in\.weight has shape"):
        export_folder(DEMO_MODEL, {"unet": broken}, tmp_path / "out")
    assert files_of(tmp_path) == {}


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / UNET_FILE)
    change(tensors)
    save_file(tensors, folder / UNET_FILE)


def test_missing_and_unknown_tensors_are_both_listed(base, mesh, unet_folder):
    rewrite(unet_folder, lambda tensors: tensors.update({"conv_in.wait": tensors.pop("conv_in.weight")}))
    with pytest.raises(UserError, match=r"1 missing \(conv_in.weight\) and 1 unknown \(conv_in.wait\)"):
        load(unet_folder, base, mesh)


def test_a_wrong_shape_names_the_tensor(base, mesh, unet_folder):
    rewrite(unet_folder, lambda tensors: tensors.update({"conv_in.bias": np.zeros(3, np.float16)}))
    with pytest.raises(UserError, match=r"'conv_in\.bias' has shape"):
        load(unet_folder, base, mesh)


def swap_ranks(tensors: dict[str, np.ndarray]) -> None:
    """Matrices become 1x1 kernels, and 1x1 kernels matrices."""
    for name, value in tensors.items():
        if name.endswith(".weight") and value.ndim == 2:
            tensors[name] = value[:, :, None, None]
        elif value.shape[2:] == (1, 1):
            tensors[name] = value[:, :, 0, 0]


def test_matrices_as_1x1_kernels_and_the_reverse_load_and_export_as_the_module_has_them(
    base, mesh, unet_folder, tmp_path
):
    rewrite(unet_folder, swap_ranks)
    loaded = load(unet_folder, base, mesh)
    out = tmp_path / "out"
    out.mkdir()
    save_component(ComponentTensors(unet_folder, jax.device_get(loaded)), out)
    found, expected = load_file(out / UNET_FILE), load_file(DEMO_MODEL / "unet" / UNET_FILE)
    assert {name: (value.shape, value.tobytes()) for name, value in found.items()} == {
        name: (value.shape, value.tobytes()) for name, value in expected.items()
    }


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_in_place_of_the_weights_is_named_at_once(base, mesh, unet_folder, make):
    path = unet_folder / UNET_FILE
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=rf"{UNET_FILE} is (not a file|missing)"):
        load(unet_folder, base, mesh)


def test_a_truncated_file_is_named(base, mesh, unet_folder):
    path = unet_folder / UNET_FILE
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"safetensors cannot be read.*damaged or incomplete"):
        load(unet_folder, base, mesh)


def test_a_pickle_is_refused_with_the_way_out(base, mesh, unet_folder):
    (unet_folder / UNET_FILE).rename(unet_folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.bin is not safetensors; set --allow-pickle for .bin, or convert it"):
        load(unet_folder, base, mesh)


def test_a_missing_shard_is_named(base, mesh, unet_folder):
    shard_in_two(unet_folder)
    (unet_folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors is missing"):
        load(unet_folder, base, mesh)


def test_names_of_old_checkpoints_are_read():
    assert canonical("text_model.encoder.layers.3.mlp.fc1.weight") == "encoder.layers.3.mlp.fc1.weight"
    assert canonical("decoder.mid_block.attentions.0.query.bias") == "decoder.mid_block.attentions.0.to_q.bias"
    assert (
        canonical("encoder.mid_block.attentions.0.proj_attn.weight") == "encoder.mid_block.attentions.0.to_out.0.weight"
    )
    assert canonical("text_model.embeddings.position_ids") is None


def test_buffers_of_old_text_encoders_survive_the_round_trip(base, mesh, tmp_path):
    source, out = tmp_path / "text_encoder", tmp_path / "out"
    shutil.copytree(DEMO_MODEL / "text_encoder", source)
    out.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(32)[None]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    save_component(ComponentTensors(source, jax.device_get(load(source, base, mesh, "text_encoder"))), out)
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_text_encoder_without_the_prefix_is_exported_with_it(base, mesh, tmp_path):
    source, out = tmp_path / "text_encoder", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    tensors = load_file(DEMO_MODEL / "text_encoder" / "model.safetensors")
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    save_component(ComponentTensors(source, jax.device_get(load(source, base, mesh, "text_encoder"))), out)
    assert set(load_file(out / "model.safetensors")) == set(tensors)


@pytest.mark.parametrize(("name", "shape"), [("a.kernel", (3, 5)), ("a.kernel", (7, 6, 3, 3)), ("a.scale", (4,))])
def test_layouts_are_inverse(name, shape, rng):
    stored = rng.normal(size=shape)
    np.testing.assert_array_equal(export_array(name, stored.transpose(import_axes(name, len(shape)))), stored)
