"""What jaxbooth reads of a repository on the Hugging Face Hub, and how it gets here.

Repositories hold the same weights several times: as safetensors and as pickles, in float32 and float16, with and
without EMA, for Flax, ONNX and OpenVINO. The files are listed first, and one set for each component is fetched.
huggingface_hub fetches, keeps the cache, and finds the token (HF_TOKEN, or what `hf auth login` stored).
"""

import errno
import glob
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxbooth.console.messages import info, warn
from jaxbooth.console.progress import progress, run_periodically
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.storage.paths import relative_file_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS, check_pipeline
from jaxbooth.weights.prepare import check_variant, choose_weights

# What is read as it is; safety checkers and feature extractors are not.
CONFIGURATIONS = re.compile(
    r"model_index\.json|scheduler/scheduler_config\.json|(unet|vae|text_encoder(_2)?)/config\.json"
    r"|tokenizer(_2)?/[\w.-]+\.(json|txt)"
)
INDEX = "model_index.json"
Read = Callable[[str], Path]  # a small file of a repository -> where it lies, fetched if need be
Choice = Callable[[list[str], Read], list[str]]  # the files of a repository -> those to fetch


def download(
    repo: str, revision: str | None, variant: str | None, offline: bool, allow_pickle: bool, vae_only: bool = False
) -> Path:
    """Fetches a model, or the VAE of one, and returns its folder in the cache; it may hold other variants as well.

    Args:
        repo: "owner/model".
        revision: a branch, tag or commit; None is the main branch.
        variant: weights to fetch for those components that have it.
        offline: use only what is in the cache.
        allow_pickle: fetch `.bin` files where there are no safetensors.
        vae_only: `repo` is a VAE, or a model of which the VAE is wanted.

    Raises:
        UserError: no such repository, revision or variant, no access to it, no usable weights in it, or a model of
            another kind, which is refused before its weights are fetched.
        RunFailure: the Hub cannot be reached or the transfer broke off.
    """
    what = f"{'VAE' if vae_only else 'model'} {repo}"

    def choose(files: list[str], read: Read) -> list[str]:
        if vae_only:
            return vae_files(files, variant, allow_pickle, what)
        if INDEX in files:
            check_pipeline(read_json(read(INDEX)), Path(repo))
        return model_files(files, variant, allow_pickle, what)

    return fetch(repo, revision, offline, what, choose)


def download_file(repo: str, revision: str | None, file: str, offline: bool) -> Path:
    """Fetches one file of a repository and returns its path in the cache.

    Raises:
        UserError, RunFailure: as `download`.
    """

    def choose(files: list[str], _: Read) -> list[str]:
        if file not in files:
            raise UserError(f"model {repo} has no file {file}; it holds {listing(files)}.")
        return [file]

    return fetch(repo, revision, offline, f"model {repo}", choose) / file


def model_files(files: list[str], variant: str | None, allow_pickle: bool, what: str) -> list[str]:
    """Returns those files of a diffusers repository that jaxbooth reads.

    Raises:
        UserError: a component has no usable weights; the message says what is there.
    """
    if INDEX not in files:
        single = [name for name in files if name.endswith(".safetensors") and "/" not in name]
        hint = f"; to use one file, add its name (/{single[0]})" if single else ""
        raise UserError(
            f"{what} has no model_index.json, so it is no diffusers model; it holds {listing(files)}{hint}."
        )
    check_variant(files, variant, what)
    needed = [name for name in files if CONFIGURATIONS.fullmatch(name)]
    for part in COMPONENTS:
        if part != "text_encoder_2" or f"{part}/config.json" in files:
            needed += weights_in(f"{part}/", files, variant, allow_pickle, what)
    return sorted(needed)


def vae_files(files: list[str], variant: str | None, allow_pickle: bool, what: str) -> list[str]:
    """Returns the files of a VAE, which is the repository itself or `vae/` in it."""
    prefix = "vae/" if "vae/config.json" in files else ""
    if f"{prefix}config.json" not in files:
        raise UserError(f"{what} has neither config.json nor vae/config.json; it holds {listing(files)}.")
    return [f"{prefix}config.json", *weights_in(prefix, files, variant, allow_pickle, what)]


def weights_in(prefix: str, files: list[str], variant: str | None, allow_pickle: bool, what: str) -> list[str]:
    """Returns the weight files of one component.

    Raises:
        UserError: there are none, or pickles alone and they were not asked for.
    """
    names = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    chosen = choose_weights(names, variant, allow_pickle, f"{what}: {prefix or 'the repository'}")
    if chosen:
        return [prefix + name for name in chosen]
    pickles = choose_weights(names, variant, True, f"{what}: {prefix or 'the repository'}")
    if pickles:
        raise UserError(
            f"{what} has {prefix}{pickles[0]} and no safetensors: a pickle, which can run code when it is opened; "
            "pass --allow-pickle if you trust where it comes from."
        )
    raise UserError(f"{what} has no usable weights in {prefix or 'it'}; it holds {listing(files)}.")


def listing(files: list[str]) -> str:
    """Returns what is at the top of a repository, for a message."""
    top = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in files} - {".gitattributes", "README.md"})
    return ", ".join(top[:12]) + (f" and {len(top) - 12} more" if len(top) > 12 else "") if top else "nothing"


def fetch(repo: str, revision: str | None, offline: bool, what: str, choose: Choice) -> Path:
    """Fetches the chosen files of a repository; those in the cache already are not fetched again.

    Returns:
        The folder of the repository's commit in the cache.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    with hub_errors(what, revision):
        if offline or constants.HF_HUB_OFFLINE:
            reason = "--offline" if offline else "HF_HUB_OFFLINE"
            return cached(repo, revision, what, choose, f"{reason} is set")
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            reason = f"the Hub could not be reached ({reason_of(error)})"
            folder = cached(repo, revision, what, choose, reason)
            warn(f"{reason}; {what} is taken from the cache.")
            return folder
        chosen = choose(
            [file.rfilename for file in info.siblings or ()],
            lambda name: Path(hf_hub_download(repo, name, revision=revision)),
        )
        files = [relative_file_name(name, what) for name in chosen]
        size = announce(repo, [file for file in info.siblings or () if file.rfilename in files], what)
        patterns = [glob.escape(name) for name in files]
        with fetching(blobs_of(repo), size):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def cached(repo: str, revision: str | None, what: str, choose: Choice, reason: str) -> Path:
    """Returns the folder of what was fetched before.

    Raises:
        UserError: not all of it was fetched.
        RunFailure: nothing was.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[], local_files_only=True))
    except LocalEntryNotFoundError:
        at = f" at revision {revision}" if revision else ""
        raise RunFailure(
            f"{what}{at} is neither a local path nor in the cache ({constants.HF_HUB_CACHE}), and {reason}."
        ) from None
    try:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        choose(files, lambda name: folder / name)
    except UserError as error:
        raise UserError(f"the cache ({folder}) does not hold all that is needed, and {reason}: {error}") from None
    return folder


def blobs_of(repo: str) -> Path:
    """Returns the folder of a repository's files in the cache, which are named by their content."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"


@contextmanager
def fetching(blobs: Path, size: int) -> Generator[None]:
    """Shows how much of `size` bytes has come while the block fetches them; nothing where there are none."""
    from huggingface_hub.utils import disable_progress_bars

    if not size:
        yield
        return
    before = folder_bytes(blobs)
    with disable_progress_bars(), progress("fetch", total=size / 1e6) as bar:
        bar.set_postfix("MB")
        with run_periodically(1.0, lambda: bar.set_completed(min(size, folder_bytes(blobs) - before) / 1e6)):
            yield
        bar.set_completed(size / 1e6)


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of a folder's files, those that are being written among them."""
    total = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # renamed in between
            total += path.stat().st_size
    return total


def announce(repo: str, files: list[Any], what: str) -> int:
    """Says what is about to be fetched, and returns its bytes.

    Args:
        files: `huggingface_hub.hf_api.RepoSibling`s with their metadata.

    Raises:
        RunFailure: the disk has no room for it.
    """
    from huggingface_hub import constants

    cache, blobs = Path(constants.HF_HUB_CACHE), blobs_of(repo)
    missing = [file for file in files if not (blobs / (file.lfs.sha256 if file.lfs else file.blob_id)).exists()]
    if not missing:
        return 0
    size = sum(file.size for file in missing)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size > free:
        raise RunFailure(
            f"{what} needs {size / 1e9:.2f} GB in {cache}, which has {free / 1e9:.2f} GB; make room, or set HF_HOME to "
            "a folder on another disk."
        )
    info(f"{what}: fetching {len(missing)} of {len(files)} files, {size / 1e9:.2f} GB.")
    return size


def reason_of(error: BaseException) -> str:
    """Returns an error's first line without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def hub_errors(what: str, revision: str | None = None) -> Generator[None]:
    """Turns what huggingface_hub raises into sentences.

    Args:
        what: "model owner/name", with its owner/name last.

    Raises:
        UserError: something that the user can put right: a name, an access right, a token.
        RunFailure: the network, the Hub or the disk failed.
    """
    from huggingface_hub import constants, errors

    repo = what.rpartition(" ")[2]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{what} asks for its licence to be accepted: do so at {constants.ENDPOINT}/{repo}, then run "
            "`hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what} is neither a local path nor on the Hub, or it is private and the token does not give access to it."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what} has no revision {revision}; name a branch, a tag or a commit.") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what} is not a name on the Hub: {reason_of(error)}.") from None
    except errors.HfHubHTTPError as error:
        raise refusal(what, error.response.status_code, reason_of(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailure(
                f"{what}: the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME."
            ) from None
        raise broken(what, error) from None
    except (errors.HTTPError, errors.XetDownloadError, RuntimeError) as error:
        raise broken(what, error) from None


def refusal(what: str, status: int, reason: str) -> UserError | RunFailure:
    """Returns the error for an HTTP status."""
    if status == 401:
        return UserError(
            f"{what}: the Hub refused the token (HF_TOKEN, or what `hf auth login` stored); get a new one."
        )
    if status == 403:
        return UserError(f"{what}: the token (HF_TOKEN, or what `hf auth login` stored) does not give access to it.")
    return RunFailure(f"{what}: the Hub answered with status {status} ({reason}); try again later.")


def broken(what: str, error: BaseException) -> RunFailure:
    """Returns the error for a transfer that did not end."""
    return RunFailure(f"{what}: the transfer broke off ({reason_of(error)}); run the same command again to continue.")
