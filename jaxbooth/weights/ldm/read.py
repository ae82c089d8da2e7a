"""Single-file checkpoints, in: one file with LDM names becomes a diffusers folder.

The file does not say what it is. Its UNet's shapes tell the family, whose configurations ship with jaxbooth, and every
tensor keeps its dtype and content.
"""

import re
import shutil
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxbooth.models.config import VAEConfig, read_config
from jaxbooth.storage.files import new_folder, write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import PUBLISHED
from jaxbooth.weights.diffusers_write import write_index
from jaxbooth.weights.family import Family
from jaxbooth.weights.ldm.identify import family_of_width, read_text_width
from jaxbooth.weights.ldm.layout import components, layout, vae_layout
from jaxbooth.weights.ldm.names import UNET_PREFIX, VAE_ATTENTION, VAE_PREFIX, vae_key
from jaxbooth.weights.ldm.prediction import Prediction, read_prediction
from jaxbooth.weights.names import canonical, published_path
from jaxbooth.weights.safetensors_write import write_tensors
from jaxbooth.weights.single_file import Checkpoint, SingleFileTensor, check_complete
from jaxbooth.weights.skeleton import write_skeleton

PLAIN_PARTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")  # folders without weights
SD2_BASE_SAMPLE_SIZE = 64  # latents of 512 px
WEIGHT_FILES = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}


def proper_name(name: str) -> str:
    """Returns the name that LDM gives to a tensor of a file that was written carelessly.

    Early SD 1.x merges lack `text_model.` in the text encoder's names, and others mix diffusers' names into the VAE's
    attention; both occur in files that are shared today.
    """
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
    checkpoint = Checkpoint(file, allow_pickle, proper_name)
    width = read_text_width(checkpoint.tensors, file)
    with TemporaryDirectory() as temporary:
        family = None
        if skeleton is None:
            family, skeleton = family_of_width(width, file), Path(temporary)
            write_skeleton(family.name, skeleton)
        prediction = read_prediction(checkpoint.tensors, file, prediction_type, family)
        layouts = {component: layout(skeleton, component) for component in components(skeleton)}
        check_complete(checkpoint, chain.from_iterable(layouts.values()), "UNet", UNET_PREFIX)
        with new_folder(folder) as aside:
            copy_plain_parts(skeleton, aside)
            write_prediction(aside, prediction, family)
            for component, ldm_tensors in layouts.items():
                write_component(checkpoint, ldm_tensors, aside / component, component)
            write_index(skeleton, aside)


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


def write_component(checkpoint: Checkpoint, ldm_tensors: list[SingleFileTensor], folder: Path, component: str) -> None:
    """Writes one component's weights; a text encoder's names get the prefix that the Hub's folders have."""
    tensors = []
    for ldm_tensor in (ldm_tensor for ldm_tensor in ldm_tensors if not ldm_tensor.is_placeholder):
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
    config = config or PUBLISHED["sd15"].folder / "vae" / "config.json"
    typed = read_config(VAEConfig, read_json(config), str(config))

    def ldm_name(name: str) -> str:
        bare = name.removeprefix(VAE_PREFIX)
        return proper_name(VAE_PREFIX + vae_key(canonical(bare) or bare, typed))  # LDM names pass unchanged

    checkpoint = Checkpoint(file, allow_pickle, ldm_name)
    ldm_tensors = vae_layout(typed)
    check_complete(checkpoint, ldm_tensors, "UNet", UNET_PREFIX)
    with new_folder(folder) as aside:
        shutil.copyfile(config, aside / "config.json")
        write_component(checkpoint, ldm_tensors, aside, "vae")
