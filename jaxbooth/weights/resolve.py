"""From what a user calls a model to a local folder. A local path never touches the network."""

from pathlib import Path

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import RunFailure, UserError

HUB_FILES = [
    "*.json", "*.txt", "tokenizer/*", "scheduler/*", "unet/*.safetensors", "vae/*.safetensors",
    "text_encoder/*.safetensors",
]  # fmt: skip
HUB_IGNORED = ["*.fp16.safetensors", "*.non_ema.safetensors", "safety_checker/*", "*.msgpack"]


def resolve_model(name: str) -> Path:
    """Returns the diffusers folder of a model.

    Args:
        name: "demo", a local folder, or a Hub id such as "owner/model".

    Raises:
        UserError: nothing of that name exists, or it is a single file.
        RunFailure: the Hub could not be reached.
    """
    if name == "demo":
        return DEMO_MODEL
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"model {name} is a file; jaxbooth reads diffusers folders (one that holds model_index.json).")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return download(name)
    raise UserError(f"model {name}: no such folder, and not a Hub id (owner/model).")


def download(repo: str) -> Path:
    """Fetches the files of a Hub model that jaxbooth reads; what is in the cache already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED))
    except GatedRepoError:
        raise UserError(
            f"model {repo} asks for its licence to be accepted: do so at https://huggingface.co/{repo}, "
            "then run `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"model {repo} is neither a local folder nor a model on the Hub (or it is private).") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunFailure(f"model {repo} is no local folder, and the Hub could not be reached ({reason}).") from None
