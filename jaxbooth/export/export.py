"""A trained run as files that other tools read: a diffusers folder, a single file, a LoRA, learned embeddings."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.models.lora import LORA_A, lora_layers, merge_on_devices
from jaxbooth.params import Params, flatten_components, join
from jaxbooth.storage.files import new_folder
from jaxbooth.training.optimizer import peak_learning_rate
from jaxbooth.weights.diffusers_write import DTYPES, ExportDtype, ExportFormat, default_dtype, write_folder
from jaxbooth.weights.embeddings import write_embeddings
from jaxbooth.weights.ldm.write import write_single_file
from jaxbooth.weights.lora.read import LoraWeights, write_kohya, write_peft

PEFT_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for


def default_format(config: Config) -> ExportFormat:
    """Returns the smallest format that holds all of what a run trained."""
    if config.lora.rank:
        return "lora"
    return (
        "embeddings"
        if config.text.token_training == "textual-inversion" and config.text.placeholder_tokens
        else "diffusers"
    )


def export_result(
    config: Config,
    base: BaseModel,
    trained: dict[str, Params],
    mesh: Mesh,
    out: Path,
    format: ExportFormat | None = None,
    dtype: ExportDtype | None = None,
    step: int | None = None,
) -> Path:
    """Writes what a run trained into the new folder `out`, and returns the file or folder to open.

    Args:
        trained: component -> trained parameters; see `result_params`.
        format: default: the run's default format. Learned embeddings lie beside every other format.
        dtype: of the weights; "base" keeps what the base model's files have (float32 for a LoRA). Default: see
            `default_dtype`.
        step: of the training, for the files' metadata; default: its last.

    Raises:
        UserError: `out` exists already, or the run trained nothing that the format can hold.
    """
    format, notes = format or default_format(config), run_metadata(config, trained, step or config.train.steps)
    dtype = dtype or default_dtype(format)
    if out.suffix == ".safetensors":
        raise UserError(f"--out {out} names a file; name a folder, the file in it is named after it.")
    if format == "lora" and not config.lora.rank:
        raise UserError("--format lora needs a run with --lora.rank; this one trained whole components, use diffusers.")
    if format == "embeddings" and not config.text.placeholder_tokens:
        raise UserError(
            "--format embeddings needs a run with --text.placeholder-tokens; this one learned no placeholder token."
        )
    with new_folder(out) as folder:
        if format == "diffusers":
            write_folder(base.folder, full_params(base, trained, mesh), folder, dtype, config_overrides(base))
        if format == "single-file":
            full = full_params(base, trained, mesh)
            write_single_file(base.folder, full, folder / f"{out.name}.safetensors", DTYPES[dtype], notes)
        if format == "lora":
            write_lora(base, trained, folder, out.name, DTYPES[dtype], notes)
        if config.text.placeholder_tokens:
            write_learned_embeddings(base, trained, folder)
    return out / f"{out.name}.safetensors" if format == "single-file" else out


def config_overrides(base: BaseModel) -> dict[str, dict[str, int]]:
    """Returns component -> the keys of its `config.json` that readers of an export need to have another value."""
    end = base.text.eos_token_id_to_set
    return {} if end is None else {base.text.encoders[-1].name: {"eos_token_id": end}}


def full_params(base: BaseModel, trained: dict[str, Params], mesh: Mesh) -> dict[str, Params]:
    """Returns component -> its whole parameters, of the components that training changed; adapters are merged."""
    changed = {name: without_embeddings(params) for name, params in trained.items()}
    changed = {name: params for name, params in changed.items() if params}
    adapted = tuple(name for name, params in changed.items() if lora_layers(params))
    return merge_on_devices(join(load_params(base, mesh, adapted, adapted) if adapted else {}, changed), base.lora)


def without_embeddings(params: Params) -> Params:
    """Returns the parameters without learned embeddings, which are files of their own."""
    return {name: value for name, value in params.items() if name != PLACEHOLDER_EMBEDDING}


def write_lora(
    base: BaseModel,
    trained: dict[str, Params],
    folder: Path,
    stem: str,
    dtype: np.dtype | None,
    notes: Mapping[str, str],
) -> None:
    """Writes the adapters twice: for diffusers, and for the web UIs, ComfyUI and kohya's tools."""
    assert base.lora is not None
    flat = flatten_components({name: without_embeddings(params) for name, params in trained.items()})
    adapters = {name: np.asarray(jax.device_get(value), np.float32) for name, value in flat.items()}
    alphas = {
        name.removesuffix(f".{LORA_A}"): base.lora.scale * base.lora.rank for name in adapters if name.endswith(LORA_A)
    }
    lora = LoraWeights(adapters, alphas)
    write_peft(folder / PEFT_FILE, lora, notes, dtype=dtype)
    write_kohya(folder / f"{stem}_kohya.safetensors", lora, base.denoiser_config, notes, dtype=dtype)


def write_learned_embeddings(base: BaseModel, trained: dict[str, Params], folder: Path) -> None:
    """Writes learned embeddings, a file for each word."""
    learned = {
        name: params[PLACEHOLDER_EMBEDDING] for name, params in trained.items() if PLACEHOLDER_EMBEDDING in params
    }
    ends = np.cumsum([len(token.entries) for token in base.text.placeholder_tokens])[:-1]
    rows = {name: np.split(np.asarray(jax.device_get(table), np.float32), ends) for name, table in learned.items()}
    words = [token.text for token in base.text.placeholder_tokens]
    embeddings = {word: {name: rows[name][index] for name in rows} for index, word in enumerate(words)}
    write_embeddings(folder, embeddings, base.family)


def run_metadata(config: Config, trained: dict[str, Params], step: int) -> dict[str, str]:
    """Returns what a weight file's metadata says about its training. Of a local base model it names the last part."""
    lora = {
        "jaxbooth.lora_rank": str(config.lora.rank),
        "jaxbooth.lora_alpha": str(config.lora.alpha or config.lora.rank),
        "jaxbooth.lora_targets": config.lora_targets,
        "jaxbooth.lora_rslora": str(config.lora.rslora),
    }
    return {
        "jaxbooth.base_model": Path(config.model).name if Path(config.model).is_absolute() else config.model,
        "jaxbooth.instance_prompt": "; ".join(subject.instance_prompt for subject in config.subjects),
        "jaxbooth.class_prompt": "; ".join(subject.class_prompt or "" for subject in config.subjects),
        "jaxbooth.steps": str(step),
        "jaxbooth.learning_rate": str(peak_learning_rate(config)),
        "jaxbooth.prior_weight": str(config.train.prior_weight),
        "jaxbooth.trained": ", ".join(trained),
    } | (lora if config.lora.rank else {})
