"""Single-file checkpoints, in: one file with LDM names becomes a diffusers folder.

The file does not say what it is. Its UNet's shapes tell the family, whose configurations ship with jaxbooth, and every
tensor keeps its dtype and content.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.config import VAEConfig, read_config
from jaxbooth.storage.files import new_folder, write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import FAMILIES, Family
from jaxbooth.weights.diffusers_write import write_index
from jaxbooth.weights.ldm.identify import family_of_width, read_text_width
from jaxbooth.weights.ldm.layout import LdmTensor, components, layout, vae_layout
from jaxbooth.weights.ldm.names import UNET_PREFIX, VAE_ATTENTION, VAE_PREFIX, vae_key
from jaxbooth.weights.ldm.prediction import Prediction, read_prediction
from jaxbooth.weights.names import canonical, published_path, without_ones
from jaxbooth.weights.pickles import open_checkpoint
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors
from jaxbooth.weights.skeleton import write_skeleton
from jaxbooth.weights.values import finite, weight_dtype

PLAIN_PARTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")  # folders without weights
LISTED = 10  # missing tensors that an error names
SD2_BASE_SAMPLE_SIZE = 64  # latents of 512 px
WEIGHT_FILES = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}


class Checkpoint:
    """An open single file whose tensors answer to their proper names.

    Early SD 1.x merges lack `text_model.` in the text encoder's names, and others mix diffusers' names into the VAE's
    attention; both occur in files that are shared today.
    """

    def __init__(self, file: Path, allow_pickle: bool, rename: Callable[[str], str] | None = None):
        self.file = file
        self.tensors = open_checkpoint(file, allow_pickle)
        names: list[str] = self.tensors.keys()
        self.stored = {(rename or proper_name)(name): name for name in names}

    def tensor(self, ldm_tensor: LdmTensor, source: str, name: str) -> LazyTensor:
        """Returns the part of a tensor that becomes the folder's `source`, to be written as `name`.

        Raises:
            UserError: its shape is not the architecture's, or it holds something else than finite floats.
        """
        stored = self.stored[ldm_tensor.name]
        shape = tuple(self.tensors.get_slice(stored).get_shape())
        if without_ones(shape) != without_ones(ldm_tensor.shape):
            raise UserError(
                f"{self.file}: {stored} has shape {shape}, but this architecture asks for {ldm_tensor.shape}; "
                "the file is of another model."
            )
        dtype = weight_dtype(self.tensors.get_slice(stored).get_dtype(), stored, self.file)

        def read() -> np.ndarray:
            return ldm_tensor.part(finite(self.tensors.get_tensor(stored), stored, self.file), source)

        return LazyTensor(name, dtype, ldm_tensor.source_shape, read)


def proper_name(name: str) -> str:
    """Returns the name that LDM gives to a tensor of a file that was written carelessly."""
    if ".mid.attn_1." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".attn_1.{ours}.", f".attn_1.{theirs}.")
    return re.sub(r"^cond_stage_model\.transformer\.(?!text_model\.)", "cond_stage_model.transformer.text_model.", name)


def convert_single_file(
    file: Path,
    folder: Path,
    skeleton: Path | None = None,
    prediction_type: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Writes a complete diffusers folder from a single-file checkpoint.

    Args:
        folder: does not exist yet.
        skeleton: folder of configurations, scheduler and tokenizers; default: those of the file's family.
        prediction_type: "epsilon" or "v_prediction"; default: what the file says, see `read_prediction`.
        allow_pickle: also read `.ckpt`, `.pt` and `.bin`, through PyTorch's weights-only loader.

    Raises:
        UserError: the file is damaged, incomplete or of a model that jaxbooth does not train (the message names it).
    """
    checkpoint = Checkpoint(file, allow_pickle)
    width = read_text_width(checkpoint.tensors, file)
    with TemporaryDirectory() as temporary:
        family = None
        if skeleton is None:
            family, skeleton = family_of_width(width, file), Path(temporary)
            write_skeleton(family.name, skeleton)
        prediction = read_prediction(checkpoint.tensors, file, prediction_type, family)
        layouts = {component: layout(skeleton, component) for component in components(skeleton)}
        check_complete(checkpoint, layouts)
        with new_folder(folder) as aside:
            copy_plain_parts(skeleton, aside)
            write_prediction(aside, prediction, family)
            for component, ldm_tensors in layouts.items():
                write_component(checkpoint, ldm_tensors, aside / component, component)
            write_index(skeleton, aside)


def check_complete(checkpoint: Checkpoint, layouts: dict[str, list[LdmTensor]]) -> None:
    """Compares a file's names with those of the architecture.

    Raises:
        UserError: tensors are missing, or the UNet has some that the architecture lacks.
    """
    wanted = [
        ldm_tensor.name for ldm_tensors in layouts.values() for ldm_tensor in ldm_tensors if not ldm_tensor.placeholder
    ]
    missing = sorted(set(wanted) - set(checkpoint.stored))
    if missing:
        shown = ", ".join(missing[:LISTED]) + (", ..." if len(missing) > LISTED else "")
        raise UserError(
            f"{checkpoint.file} lacks {len(missing)} of {len(wanted)} tensors of its architecture ({shown}); "
            "it is incomplete or of another model."
        )
    surplus = sorted(name for name in set(checkpoint.stored) - set(wanted) if name.startswith(UNET_PREFIX))
    if surplus:
        shown = ", ".join(surplus[:LISTED]) + (", ..." if len(surplus) > LISTED else "")
        raise UserError(
            f"{checkpoint.file}: its UNet has {len(surplus)} tensors that its architecture lacks ({shown}); "
            "it is of another model."
        )


def copy_plain_parts(skeleton: Path, out: Path) -> None:
    """Copies what a model needs besides weights: configurations, scheduler and tokenizers."""
    for name in PLAIN_PARTS:
        if (skeleton / name).is_dir():
            shutil.copytree(skeleton / name, out / name, copy_function=shutil.copyfile)
    for component in components(skeleton):
        (out / component).mkdir()
        shutil.copyfile(skeleton / component / "config.json", out / component / "config.json")


def write_prediction(folder: Path, prediction: Prediction, family: Family | None) -> None:
    """Writes what the network predicts, where something says it, into the scheduler's configuration.

    The SD 2.x models that predict epsilon are the 512 px ones; the family's configuration is that of the others.
    """
    changes: dict[str, Any] = {"prediction_type": prediction.type} if prediction.type else {}
    if prediction.zero_snr:
        changes["rescale_betas_zero_snr"] = True
    edit_json(folder / "scheduler" / "scheduler_config.json", changes)
    if family and family.name == "sd21" and prediction.type == "epsilon":
        edit_json(folder / "unet" / "config.json", {"sample_size": SD2_BASE_SAMPLE_SIZE})


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Writes a JSON file with some keys changed, or leaves it as it is."""
    if changes:
        write_json(path, read_json(path) | changes)


def write_component(checkpoint: Checkpoint, ldm_tensors: list[LdmTensor], folder: Path, component: str) -> None:
    """Writes one component's weights; a text encoder's names get the prefix that the Hub's folders have."""
    tensors = []
    for ldm_tensor in (ldm_tensor for ldm_tensor in ldm_tensors if not ldm_tensor.placeholder):
        for source in ldm_tensor.sources:
            tensors.append(checkpoint.tensor(ldm_tensor, source, published_path(component, source)))
    write_tensors(folder / WEIGHT_FILES.get(component, "model.safetensors"), tensors, {"format": "pt"})


def convert_vae(file: Path, folder: Path, config: Path | None = None, allow_pickle: bool = False) -> None:
    """Writes a diffusers VAE folder from a file with LDM names (a whole checkpoint's too) or with diffusers names.

    Args:
        folder: does not exist yet.
        config: the `config.json` to use, of the base model's own VAE; default: SD 1.x's.

    Raises:
        UserError: the file is damaged, no VAE, or of another architecture.
    """
    config = config or FAMILIES["sd15"].folder / "vae" / "config.json"
    typed = read_config(VAEConfig, read_json(config), str(config))

    def ldm_name(name: str) -> str:
        bare = name.removeprefix(VAE_PREFIX)
        return proper_name(VAE_PREFIX + vae_key(canonical(bare) or bare, typed))  # LDM names pass unchanged

    checkpoint = Checkpoint(file, allow_pickle, ldm_name)
    ldm_tensors = vae_layout(typed)
    check_complete(checkpoint, {"vae": ldm_tensors})
    with new_folder(folder) as aside:
        shutil.copyfile(config, aside / "config.json")
        write_component(checkpoint, ldm_tensors, aside, "vae")
