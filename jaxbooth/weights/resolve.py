"""From what a user calls a model to a local folder. A local path never touches the network."""

from pathlib import Path

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.similar import contains_file
from jaxbooth.weights.hub import download, download_file
from jaxbooth.weights.pickles import PICKLES
from jaxbooth.weights.prepare import prepare
from jaxbooth.weights.source import Source

CHECKPOINTS = (".safetensors", *PICKLES)


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
    vae = locate(source.vae, source, is_vae=True) if source.vae else None
    return prepare(model, vae, source.variant, source.allow_pickle, source.prediction_type)


def locate(name: str, source: Source, is_vae: bool = False) -> Path:
    """Returns the local folder or file of a model or of a VAE, fetched if it is on the Hub.

    Raises:
        UserError: there is nothing of that name.
        RunFailure: the Hub could not be reached.
    """
    label = f"--vae {name}" if is_vae else f"model {name}"
    path = DEMO_MODEL if name == "demo" else local_path(name)
    if path.exists():
        if source.revision and not is_vae:
            raise UserError(f"--revision {source.revision} does not apply to {label}, which is not on the Hub.")
        if contains_file(path, "config.yaml") and not contains_file(path, "model_index.json"):
            raise UserError(
                f"{label} is a run; write a model with `jaxbooth export RUN --format diffusers --out FOLDER`."
            )
        return path
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    suffix = Path(name).suffix.lower()
    if name.startswith((".", "/", "~")) or not (owner and repo) or (file and suffix not in CHECKPOINTS):
        raise UserError(f"{label}: no such folder or file, and not a Hub id (owner/model).")
    repo, revision = f"{owner}/{repo}", None if is_vae else source.revision
    if not file:
        return download(repo, revision, source.variant, source.offline, source.allow_pickle, vae_only=is_vae)
    if suffix in PICKLES and not source.allow_pickle:
        raise UserError(
            f"{label} is a pickle, which can run code when it is opened; pass --allow-pickle if you trust where it "
            "comes from."
        )
    return download_file(repo, revision, file, source.offline)
