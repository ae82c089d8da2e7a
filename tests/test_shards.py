"""Weights in several files and their index, as diffusers saves and reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxbooth.weights.diffusers_read import weight_files
from jaxbooth.weights.diffusers_write import write_folder
from jaxbooth.weights.safetensors_write import LazyTensor
from jaxbooth.weights.shards import split, write_shards

from .flow_models import transformer, write_pipeline
from .small_models import files_of

FILE = "diffusion_pytorch_model.safetensors"
LIMIT = 40_000  # bytes; the largest matrix has 32 KB


def lazy(state: dict[str, torch.Tensor]) -> list[LazyTensor]:
    return [LazyTensor(name, np.dtype(np.float32), tuple(value.shape), value.numpy) for name, value in state.items()]


def test_tensors_fill_files_in_their_order_and_a_large_one_lies_alone():
    sizes = (6, 6, 2, 20, 2, 2)
    tensors = [LazyTensor(str(size), np.dtype(np.int8), (size,), lambda: np.zeros(0)) for size in sizes]
    assert [[tensor.nbytes for tensor in file] for file in split(tensors, 10)] == [[6], [20], [6, 2, 2], [2]]


def test_files_and_index_are_those_of_diffusers(tmp_path):
    model = transformer("zimage")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=LIMIT)
    (tmp_path / "ours").mkdir()
    write_shards(tmp_path / "ours" / FILE, lazy(model.state_dict()), {"format": "pt"}, LIMIT)
    theirs = files_of(tmp_path / "theirs")
    theirs.pop("config.json")
    assert len(theirs) > 3
    assert files_of(tmp_path / "ours") == theirs


def test_what_fits_is_one_file_without_an_index(tmp_path):
    write_shards(tmp_path / FILE, lazy({"weight": torch.ones(3, 2)}), None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("dtype", ["base", "bfloat16"])
def test_an_export_has_the_shards_of_the_base(tmp_path, dtype):
    folder = write_pipeline("zimage", tmp_path / "model")
    (folder / "transformer" / FILE).unlink()
    transformer("zimage").save_pretrained(folder / "transformer", max_shard_size=LIMIT)
    (tmp_path / "out").mkdir()
    bias = np.full(32, 0.5, np.float32)
    write_folder(folder, {"transformer": {"cap_embedder.1.bias": bias}}, tmp_path / "out", dtype)
    before, after = (weight_files(path / "transformer") for path in (folder, tmp_path / "out"))
    assert after == before
    index = json.loads(Path(tmp_path / "out" / "transformer" / f"{FILE}.index.json").read_text())
    numbers = sum(value.numel() for value in transformer("zimage").state_dict().values())
    assert index["metadata"]["total_size"] == numbers * (4 if dtype == "base" else 2)
    assert set(index["weight_map"].values()) == set(after)
