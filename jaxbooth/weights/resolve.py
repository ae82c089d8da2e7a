"""From what a user calls a model to a local folder. A local path never touches the network."""

from pathlib import Path
from typing import Literal

from jaxbooth.assets import EMBEDDED_MODELS
from jaxbooth.console.messages import info
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.similar import contains_file
from jaxbooth.weights.denoiser_file.identify import Denoiser, find_denoiser
from jaxbooth.weights.hub import download, download_file
from jaxbooth.weights.pickles import PICKLES
from jaxbooth.weights.prepare import check_is_checkpoint, prepare
from jaxbooth.weights.source import Source

CHECKPOINTS = (".safetensors", *PICKLES)
Role = Literal["model", "--vae", "--components"]  # what a name is given as


def resolve_model(source: Source | str) -> Path:
    """Returns a model's plain diffusers folder: safetensors only, one set of weights for each component.

    Raises:
        UserError: nothing of that name exists, it is no model, or it lacks what was asked for.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    source = Source(source) if isinstance(source, str) else source
    model = locate(source.name, source)
    if source.variant and model.is_file():
        raise UserError(f"--variant {source.variant} does not apply to model {source.name}, which is one file.")
    denoiser = None
    if model.is_file():
        check_is_checkpoint(model)
        denoiser = find_denoiser(model)
    if denoiser:
        model = locate_components(denoiser, source)
    elif source.components:
        raise UserError(
            f"--components {source.components} does not apply to model {source.name}, which is no transformer alone."
        )
    vae = locate(source.vae, source, "--vae") if source.vae else None
    return prepare(model, source, vae, denoiser)


def locate_components(denoiser: Denoiser, source: Source) -> Path:
    """Returns the folder of the model that a transformer alone takes its other parts from.

    Raises:
        UserError: none was named and no published model is of that size, or it is one file.
        RunFailure: the Hub could not be reached.
    """
    title = denoiser.family.title
    name = source.components or denoiser.published
    if name is None:
        raise UserError(
            f"{denoiser.file} is a {title} transformer alone, and no published model takes prompt embeddings of "
            f"{denoiser.text_width} numbers; name the model of its text encoder, VAE and scheduler with --components."
        )
    if not source.components:
        info(
            f"{denoiser.file} is a {title} transformer alone; text encoder, tokenizer, VAE and scheduler are those of "
            f"{name} (--components names another model)."
        )
    folder = locate(name, source, "--components", without=denoiser.family.denoiser.component)
    if folder.is_file():
        raise UserError(f"--components {name} is a file; name a model in diffusers layout.")
    return folder


def locate(name: str, source: Source, role: Role = "model", without: str | None = None) -> Path:
    """Returns the local folder or file of a model or of a VAE, fetched if it is on the Hub.

    Args:
        without: the component whose weights are not wanted.

    Raises:
        UserError: there is nothing of that name.
        RunFailure: the Hub could not be reached.
    """
    label = f"{role} {name}"
    path = EMBEDDED_MODELS.get(name) or local_path(name)
    revision = source.revision if role == "model" else None
    if path.exists():
        if revision:
            raise UserError(f"--revision {revision} does not apply to {label}, which is not on the Hub.")
        if contains_file(path, "config.yaml") and not contains_file(path, "model_index.json"):
            raise UserError(
                f"{label} is a run; write a model with `jaxbooth export RUN --format diffusers --out FOLDER`."
            )
        return path
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    suffix = Path(name).suffix.lower()
    if suffix == ".gguf":
        raise UserError(f"{label} is a GGUF file, whose weights are quantized; use the model's bf16 .safetensors file.")
    if name.startswith((".", "/", "~")) or not (owner and repo) or (file and suffix not in CHECKPOINTS):
        raise UserError(f"{label}: no such folder or file, and not a Hub id (owner/model).")
    repo = f"{owner}/{repo}"
    if not file:
        return download(repo, revision, source.variant, source.offline, source.allow_pickle, role == "--vae", without)
    if suffix in PICKLES and not source.allow_pickle:
        raise UserError(
            f"{label} is a pickle, which can run code when it is opened; pass --allow-pickle if you trust where it "
            "comes from."
        )
    return download_file(repo, revision, file, source.offline)
