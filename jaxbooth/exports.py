"""A trained run as files that other tools read: a diffusers folder, a single file, a LoRA, learned embeddings."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save

from jaxbooth.config import Config
from jaxbooth.errors import UserError
from jaxbooth.files import new_folder, write_bytes
from jaxbooth.models.lora import DOWN, adapted_layers, merged
from jaxbooth.params import Params, join
from jaxbooth.pipeline import Base, load_params
from jaxbooth.text import NEW_TOKENS
from jaxbooth.training.optimizer import peak_rate
from jaxbooth.weights.lora_file import LoraWeights, write_kohya, write_peft
from jaxbooth.weights.pipeline_dir import DTYPES, ExportDtype, ExportFormat, write_folder
from jaxbooth.weights.push import embedding_files
from jaxbooth.weights.single_file_out import pack

PEFT_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of an embedding file, as the web UIs name them


def natural_format(config: Config) -> ExportFormat:
    """Returns the smallest format that holds all of what a run trained."""
    if config.lora.rank:
        return "lora"
    return "embeddings" if config.text.token_phase == "alone" and config.text.new_tokens else "diffusers"


def export_result(
    config: Config,
    base: Base,
    trained: dict[str, Params],
    mesh: Mesh,
    out: Path,
    kind: ExportFormat | None = None,
    dtype: ExportDtype = "base",
) -> Path:
    """Writes what a run trained into the new folder `out`, and returns the file or folder to open.

    Args:
        trained: component -> trained parameters; see `result_params`.
        kind: default: the run's natural format. Learned embeddings lie beside every other format.
        dtype: of the weights; "base" keeps what the base model's files have (float32 for a LoRA).

    Raises:
        UserError: `out` exists already, or the run trained nothing that the format can hold.
    """
    kind = kind or natural_format(config)
    if kind == "lora" and not config.lora.rank:
        raise UserError("--format lora needs a run with --lora.rank; this one trained whole components, use diffusers.")
    if kind == "embeddings" and not config.text.new_tokens:
        raise UserError("--format embeddings needs a run with --text.new-tokens; this one learned no new word.")
    with new_folder(out) as folder:
        if kind == "diffusers":
            write_folder(base.folder, full_params(base, trained, mesh), folder, dtype)
        if kind == "single-file":
            full = full_params(base, trained, mesh)
            pack(base.folder, full, folder / f"{out.name}.safetensors", DTYPES[dtype], facts(config, trained))
        if kind == "lora":
            write_lora(config, base, trained, folder, out.name, DTYPES[dtype])
        if config.text.new_tokens:
            write_embeddings(base, trained, folder)
    return out / f"{out.name}.safetensors" if kind == "single-file" else out


def full_params(base: Base, trained: dict[str, Params], mesh: Mesh) -> dict[str, Params]:
    """Returns component -> its whole parameters, of the components that training changed; adapters are merged."""
    changed = {name: drop_embeddings(params) for name, params in trained.items()}
    changed = {name: params for name, params in changed.items() if params}
    adapted = tuple(name for name, params in changed.items() if adapted_layers(params))
    full = join(load_params(base, mesh, adapted, adapted) if adapted else {}, changed)
    return {name: merged(params, base.lora) if base.lora else params for name, params in full.items()}


def drop_embeddings(params: Params) -> Params:
    """Returns the parameters without learned embeddings, which are files of their own."""
    return {name: value for name, value in params.items() if name != NEW_TOKENS}


def write_lora(
    config: Config, base: Base, trained: dict[str, Params], folder: Path, stem: str, dtype: np.dtype | None
) -> None:
    """Writes the adapters twice: for diffusers, and for the web UIs, ComfyUI and kohya's tools."""
    assert base.lora is not None
    adapters = {
        f"{component}.{name}": np.asarray(jax.device_get(value), np.float32)
        for component, params in trained.items()
        for name, value in drop_embeddings(params).items()
    }
    alphas = {
        name.removesuffix(f".{DOWN}"): base.lora.scale * base.lora.rank for name in adapters if name.endswith(DOWN)
    }
    lora, notes = LoraWeights(adapters, alphas), facts(config, trained)
    write_peft(folder / PEFT_FILE, lora, notes, dtype=dtype)
    write_kohya(folder / f"{stem}_kohya.safetensors", lora, base.unet_config, notes, dtype=dtype)


def write_embeddings(base: Base, trained: dict[str, Params], folder: Path) -> None:
    """Writes learned embeddings as `load_textual_inversion` and the web UIs read them: float32, a file for each word.

    SD 1.x and 2.x have one tensor (vectors, d) under the word; SDXL has one for each text encoder.
    """
    learned = {name: np.asarray(jax.device_get(params[NEW_TOKENS]), np.float32) for name, params in trained.items()
               if NEW_TOKENS in params}  # fmt: skip
    files = embedding_files([token.word for token in base.text.new_tokens])
    ends = np.cumsum([len(token.entries) for token in base.text.new_tokens])[:-1]
    for index, token in enumerate(base.text.new_tokens):
        rows = {name: np.ascontiguousarray(np.split(table, ends)[index]) for name, table in learned.items()}
        names = {name: SDXL_KEYS[name] if base.text.is_xl else token.word for name in rows}
        write_bytes(folder / files[token.word], save({names[name]: value for name, value in rows.items()}))


def facts(config: Config, trained: dict[str, Params]) -> dict[str, str]:
    """Returns what a weight file's metadata says about its training."""
    lora = {
        "jaxbooth.lora_rank": str(config.lora.rank),
        "jaxbooth.lora_alpha": str(config.lora.alpha or config.lora.rank),
        "jaxbooth.lora_targets": config.lora.targets,
    }
    return {
        "jaxbooth.base_model": config.model,
        "jaxbooth.instance_prompt": "; ".join(subject.instance_prompt for subject in config.subjects),
        "jaxbooth.class_prompt": "; ".join(subject.class_prompt or "" for subject in config.subjects),
        "jaxbooth.steps": str(config.train.steps),
        "jaxbooth.learning_rate": str(peak_rate(config)),
        "jaxbooth.prior_weight": str(config.train.prior_weight),
        "jaxbooth.trained": ", ".join(trained),
    } | (lora if config.lora.rank else {})
