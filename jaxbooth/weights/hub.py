"""Models on the Hugging Face Hub, and how they get here.

The files of a repository are listed first, and those that jaxbooth reads are fetched. huggingface_hub fetches, keeps
the cache, and finds the token (HF_TOKEN, or what `hf auth login` stored).
"""

import errno
import glob
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
from jaxbooth.weights.architectures import check_pipeline
from jaxbooth.weights.hub_files import INDEX, check_is_diffusers, list_contents, model_files, vae_files

ReadFile = Callable[[str], Path]  # a small file of a repository -> where it lies, fetched if need be
ChooseFiles = Callable[[list[str], ReadFile], list[str]]  # the files of a repository -> those to fetch


def download(
    repo: str,
    revision: str | None,
    variant: str | None,
    offline: bool,
    allow_pickle: bool,
    vae_only: bool = False,
    without: str | None = None,
) -> Path:
    """Fetches a model, or the VAE of one, and returns its folder in the cache; it may hold other variants as well.

    Args:
        repo: "owner/model".
        revision: a branch, tag or commit; None is the main branch.
        variant: weights to fetch for those components that have it.
        offline: use only what is in the cache.
        allow_pickle: fetch `.bin` files where there are no safetensors.
        vae_only: `repo` is a VAE, or a model of which the VAE is wanted.
        without: the component whose weights are not wanted.

    Raises:
        UserError: no such repository, revision or variant, no access to it, no usable weights in it, or a model of
            another kind, which is refused before its weights are fetched.
        RunFailure: the Hub cannot be reached or the transfer broke off.
    """
    label = f"{'VAE' if vae_only else 'model'} {repo}"

    def choose(files: list[str], read: ReadFile) -> list[str]:
        if vae_only:
            return vae_files(files, variant, allow_pickle, label)
        check_is_diffusers(files, label)
        components = check_pipeline(read_json(read(INDEX)), Path(repo))
        return model_files(files, components, variant, allow_pickle, label, without)

    return fetch(repo, revision, offline, label, choose)


def download_file(repo: str, revision: str | None, file: str, offline: bool) -> Path:
    """Fetches one file of a repository and returns its path in the cache.

    Raises:
        UserError, RunFailure: as `download`.
    """

    def choose(files: list[str], _: ReadFile) -> list[str]:
        if file not in files:
            raise UserError(f"model {repo} has no file {file}; it holds {list_contents(files)}.")
        return [file]

    return fetch(repo, revision, offline, f"model {repo}", choose) / file


def fetch(repo: str, revision: str | None, offline: bool, label: str, choose: ChooseFiles) -> Path:
    """Fetches the chosen files of a repository; those in the cache already are not fetched again.

    Returns:
        The folder of the repository's commit in the cache.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import disable_progress_bars

    with hub_errors(label, revision):
        if offline or constants.HF_HUB_OFFLINE:
            reason = "--offline" if offline else "HF_HUB_OFFLINE"
            return cached(repo, revision, label, choose, f"{reason} is set")
        try:
            repository = HfApi().model_info(repo, revision=revision)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            reason = f"the Hub could not be reached ({reason_of(error)})"
            folder = cached(repo, revision, label, choose, reason)
            warn(f"{reason}; {label} is taken from the cache.")
            return folder
        names = [file.rfilename for file in repository.siblings or ()]
        chosen = choose(names, lambda name: Path(hf_hub_download(repo, name, revision=revision)))
        patterns = [glob.escape(relative_file_name(name, label)) for name in chosen]
        with disable_progress_bars():
            files: Any = snapshot_download(repo, revision=revision, allow_patterns=patterns, dry_run=True)
            missing = [file for file in files if file.will_download]
            if missing:
                announce(missing, len(files), label)
            with show_progress(missing):
                return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def cached(repo: str, revision: str | None, label: str, choose: ChooseFiles, reason: str) -> Path:
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
            f"{label}{at} is neither a local path nor in the cache ({constants.HF_HUB_CACHE}), and {reason}."
        ) from None
    try:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        choose(files, lambda name: folder / name)
    except UserError as error:
        raise UserError(f"the cache ({folder}) does not hold all that is needed, and {reason}: {error}") from None
    return folder


def announce(missing: list[Any], total: int, label: str) -> None:
    """Says what is about to be fetched.

    Args:
        missing: `huggingface_hub.file_download.DryRunFileInfo` of each file that is not in the cache.
        total: files that are needed.

    Raises:
        RunFailure: the disk has no room for it.
    """
    from huggingface_hub import constants

    cache, size = Path(constants.HF_HUB_CACHE), sum(file.file_size or 0 for file in missing)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size > free:
        raise RunFailure(
            f"{label} needs {size / 1e9:.2f} GB in {cache}, which has {free / 1e9:.2f} GB; make room, or set HF_HOME "
            "to a folder on another disk."
        )
    info(f"{label}: fetching {len(missing)} of {total} files, {size / 1e9:.2f} GB.")


@contextmanager
def show_progress(missing: list[Any]) -> Generator[None]:
    """Shows how much of the missing files has come while the block fetches them; nothing where none are missing."""
    size = sum(file.file_size or 0 for file in missing)
    if not size:
        yield
        return
    # models--<owner>--<name>/snapshots/<commit>/<file> is a link to models--<owner>--<name>/blobs/<hash>
    snapshot = Path(missing[0].local_path).parents[missing[0].filename.count("/")]
    blobs = snapshot.parents[1] / "blobs"
    before = folder_bytes(blobs)
    with progress("fetch", total=size / 1e6) as bar:
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


def reason_of(error: BaseException) -> str:
    """Returns an error's first line without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def hub_errors(label: str, revision: str | None = None) -> Generator[None]:
    """Turns what huggingface_hub raises into sentences.

    Args:
        label: "model owner/name", with its owner/name last.

    Raises:
        UserError: something that the user can put right: a name, an access right, a token.
        RunFailure: the network, the Hub or the disk failed.
    """
    from huggingface_hub import constants, errors

    repo = label.rpartition(" ")[2]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{label} asks for its licence to be accepted: do so at {constants.ENDPOINT}/{repo}, then run "
            "`hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{label} is neither a local path nor on the Hub, or it is private and the token does not give access to "
            "it."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{label} has no revision {revision}; name a branch, a tag or a commit.") from None
    except errors.HFValidationError as error:
        raise UserError(f"{label} is not a name on the Hub: {reason_of(error)}.") from None
    except errors.HfHubHTTPError as error:
        raise refusal(label, error.response.status_code, reason_of(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailure(
                f"{label}: the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME."
            ) from None
        raise transfer_failure(label, error) from None
    except (errors.HTTPError, errors.XetDownloadError, RuntimeError) as error:
        raise transfer_failure(label, error) from None


def refusal(label: str, status: int, reason: str) -> UserError | RunFailure:
    """Returns the error for an HTTP status."""
    if status == 401:
        return UserError(
            f"{label}: the Hub refused the token (HF_TOKEN, or what `hf auth login` stored); get a new one."
        )
    if status == 403:
        return UserError(f"{label}: the token (HF_TOKEN, or what `hf auth login` stored) does not give access to it.")
    return RunFailure(f"{label}: the Hub answered with status {status} ({reason}); try again later.")


def transfer_failure(label: str, error: BaseException) -> RunFailure:
    """Returns the error for a transfer that did not end."""
    return RunFailure(f"{label}: the transfer broke off ({reason_of(error)}); run the same command again to continue.")
