"""A diffusers folder, out: components that change are rewritten, everything else is copied as it is.

Writing follows the layout of the folder that the model came from (names, files, metadata, buffers), so that import
followed by export reproduces an untouched model byte for byte. Tensors are written one at a time.
"""

import shutil
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxbooth.console.progress import progress
from jaxbooth.errors import UserError
from jaxbooth.params import AnyArray, Params
from jaxbooth.storage.files import write_json
from jaxbooth.storage.paths import plain_file_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS
from jaxbooth.weights.diffusers_read import index_file, open_tensors, plain_name, weight_files
from jaxbooth.weights.names import canonical, export_array, parameter_names, published_path, torch_shape, without_ones
from jaxbooth.weights.safetensors_write import LazyTensor, stored_dtype, write_tensors
from jaxbooth.weights.shards import write_shards, write_weight_map

ExportDtype = Literal["base", "float32", "float16", "bfloat16"]
DTYPES = {"base": None, "float32": np.dtype("float32"), "float16": np.dtype("float16"),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
CLIP_EMBEDDING = "embeddings.token_embedding.weight"  # which no other text encoder has
GENERATION = "generation_config.json"  # of a language model, beside its configuration
COPIED = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor", "safety_checker")


class ComponentTensors:
    """A component's tensors by today's state-dict names: what was trained, and else what its folder holds.

    Attributes:
        folder: of the base model's component, named as the component is.
        params: parameter name -> array, on the devices or on the host; it replaces the folder's.
        dtype: of everything that is written; None keeps each tensor's own of `folder`.
        files: weight file -> names of the tensors in it.
        stored: state-dict name -> name in the files; buffers are not in it.
    """

    def __init__(self, folder: Path, params: Mapping[str, AnyArray], dtype: np.dtype | None = None):
        self.folder, self.params, self.dtype = folder, params, dtype
        self.replaced = parameter_names(params)
        self.files = weight_files(folder)
        self.open_files = {file: open_tensors(folder / file) for file in self.files}
        self.file_of = {stored: file for file, names in self.files.items() for stored in names}
        self.stored = {name: stored for stored in self.file_of if (name := canonical(stored))}

    @cached_property
    def is_copied(self) -> bool:
        """Whether nothing about it changes, so that its files are copied."""
        return not self.params and all(
            self.dtype_of(name) == self.stored_dtype(stored) for name, stored in self.stored.items()
        )

    def stored_name(self, name: str) -> str:
        """Returns a parameter's name in the files.

        Raises:
            UserError: the folder lacks it.
        """
        if name not in self.stored:
            raise UserError(f"{self.folder}: the tensor {name} is missing; fetch the model again.")
        return self.stored[name]

    def stored_value(self, stored: str) -> np.ndarray:
        """Reads a tensor of the files."""
        return self.open_files[self.file_of[stored]].get_tensor(stored)

    def stored_dtype(self, stored: str) -> np.dtype:
        """Returns the dtype of a tensor of the files."""
        file = self.file_of[stored]
        return stored_dtype(self.open_files[file], stored, self.folder / file)

    def stored_shape(self, stored: str) -> tuple[int, ...]:
        """Returns the shape of a tensor of the files."""
        return tuple(self.open_files[self.file_of[stored]].get_slice(stored).get_shape())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape that a parameter is written in: the files', but for 1x1 kernels that should be matrices."""
        stored = self.stored_shape(self.stored_name(name))
        if name not in self.replaced:
            return stored
        parameter = self.replaced[name]
        shape = torch_shape(parameter, self.params[parameter].shape)
        return shape if without_ones(shape) == without_ones(stored) else stored

    def dtype_of(self, name: str) -> np.dtype:
        """Returns the dtype that a parameter is written in."""
        return self.dtype or self.stored_dtype(self.stored_name(name))

    def value(self, name: str) -> np.ndarray:
        """Returns a parameter in PyTorch's layout, before it is cast."""
        if name in self.replaced:
            parameter = self.replaced[name]
            return export_array(parameter, np.asarray(self.params[parameter]))
        return self.stored_value(self.stored_name(name))

    def written(self, name: str) -> np.ndarray:
        """Returns a parameter as it is written."""
        with np.errstate(over="ignore"):  # an overflow to infinity is found when the export is verified
            return self.value(name).astype(self.dtype_of(name))

    def published(self, name: str) -> str:
        """Returns the name in a written folder: readers before transformers 5 need a CLIP text encoder's prefix."""
        return published_path(self.folder.name, name) if CLIP_EMBEDDING in self.stored else self.stored_name(name)

    def tensor(self, stored: str) -> LazyTensor:
        """Returns what becomes of one tensor of the files in a written folder.

        What is no parameter stays: buffers as they are, and a language model's output layer in the dtype of the others.
        """
        name = canonical(stored)
        if name is None:
            dtype = self.stored_dtype(stored)
            if self.dtype and jnp.issubdtype(dtype, jnp.floating):
                dtype = self.dtype
            return LazyTensor(stored, dtype, self.stored_shape(stored), lambda: self.stored_value(stored).astype(dtype))
        return LazyTensor(self.published(name), self.dtype_of(name), self.shape_of(name), partial(self.written, name))

    def metadata(self, file: str) -> dict[str, Any] | None:
        """Returns the head of one of the files."""
        return self.open_files[file].metadata()


def save_component(component: ComponentTensors, out: Path) -> None:
    """Writes a component's weights into the existing folder `out`, in the files that its own folder has.

    Raises:
        ValueError: a parameter has not the shape of the tensor that it replaces.
    """
    tensors = {file: [component.tensor(name) for name in names] for file, names in component.files.items()}
    index = index_file(component.folder)
    if index is None:
        file = next(iter(tensors))
        write_shards(out / plain_name(file), tensors[file], component.metadata(file))
        return
    for file, content in tensors.items():
        write_tensors(out / plain_name(file), content, component.metadata(file))
    weight_map = {tensor.name: plain_name(file) for file, content in tensors.items() for tensor in content}
    size = sum(tensor.nbytes for content in tensors.values() for tensor in content)
    write_weight_map(out / plain_name(index.name), weight_map, size, read_json(index))


def write_folder(
    base: Path,
    params: Mapping[str, Params],
    out: Path,
    dtype: ExportDtype = "base",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Fills the empty folder `out` with what `diffusers.DiffusionPipeline.from_pretrained` opens.

    Args:
        base: the folder that the model came from; its configurations and its layout are kept.
        params: component -> parameters to write; components without keep the base model's.
        dtype: of all components; "base" keeps what the base model's files have. Untouched ones that have it already
            are copied.
        changes: component -> keys of its `config.json` that get another value.
    """
    components = [name for name in COMPONENTS if (base / name).is_dir()]
    with progress("export", len(components)) as bar:
        for component in components:
            bar.set_postfix(component)
            (out / component).mkdir()
            write_config(base / component, out / component, dtype, (changes or {}).get(component, {}))
            if (base / component / GENERATION).exists():
                shutil.copyfile(base / component / GENERATION, out / component / GENERATION)
            written = ComponentTensors(base / component, params.get(component, {}), DTYPES[dtype])
            if written.is_copied:
                copy_weights(base / component, out / component)
            else:
                save_component(written, out / component)
            bar.advance()
    for name in COPIED:
        if (base / name).is_dir():
            copy_files(base / name, out / name)
    if (out / "safety_checker" / "config.json").exists():  # its weights stay, and are loaded in the dtype that it says
        write_config(base / "safety_checker", out / "safety_checker", dtype)
    write_index(base, out)


def write_config(source: Path, target: Path, dtype: ExportDtype, changes: Mapping[str, Any] | None = None) -> None:
    """Writes a component's `config.json`: a copy, unless a key changes.

    transformers loads a model in the dtype that its configuration names, whatever its files have; it is named anew.
    """
    raw = read_json(source / "config.json")
    changed = raw | dict(changes or {})
    if DTYPES[dtype] and "model_type" in raw:  # of transformers
        changed |= {key: dtype for key in ("dtype", "torch_dtype") if key in raw} or {"torch_dtype": dtype}
    if changed == raw:
        shutil.copyfile(source / "config.json", target / "config.json")
    else:
        write_json(target / "config.json", changed)


def write_index(base: Path, out: Path) -> None:
    """Copies `model_index.json`; parts that it names and the base folder lacks (a safety checker) become null."""
    index = read_json(base / "model_index.json")
    parts = [key for key, value in index.items() if isinstance(value, list) and any(value[:1])]
    absent = [key for key in parts if not (out / plain_file_name(key, str(base / "model_index.json"))).is_dir()]
    if not absent:
        shutil.copyfile(base / "model_index.json", out / "model_index.json")
        return
    index |= {key: [None, None] for key in absent}
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    write_json(out / "model_index.json", index)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder into a new one; subfolders and what is no regular file no reader looks for."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def copy_weights(source: Path, target: Path) -> None:
    """Copies a component's weight files, and their index."""
    index = index_file(source)
    for path in [*(source / name for name in weight_files(source)), *([index] if index else [])]:
        shutil.copyfile(path, target / plain_name(path.name))
