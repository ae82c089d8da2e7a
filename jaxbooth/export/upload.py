"""An exported model, out to the Hugging Face Hub."""

import re
from pathlib import Path

from jaxbooth.errors import UserError
from jaxbooth.weights.hub import hub_errors, reason_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def upload_folder(folder: Path, repo: str, card: str, private: bool = True) -> str:
    """Uploads the files of a folder and a model card in one commit; files of the same names there are replaced.

    Args:
        repo: "owner/name"; created when missing.
        card: content of README.md, which goes before one in the folder.
        private: of a repository that is created. One that exists keeps what it is.

    Returns:
        The repository's URL.

    Raises:
        UserError: `repo` is no such name, there is no token with write access, or a private push would be public.
        RunFailure: the Hub cannot be reached or the transfer broke off.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_target(repo)
    contents: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not re.search(r"(^|/)\.", name):
            contents[name] = path
    if not contents:
        raise UserError(f"{folder} holds no files to push.")
    contents["README.md"] = card.encode()
    with hub_errors(f"repository {repo}"):
        api = HfApi()
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        if private and not api.model_info(repo).private:
            raise UserError(f"{url} exists and is public; push to another name, or say that it may be public.")
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=item) for name, item in contents.items()]
        try:
            api.create_commit(repo, additions, commit_message="Upload a model trained with jaxbooth")
        except ValueError as error:  # the Hub checks the card's front matter first
            raise UserError(f"{url} does not take the model card: {reason_of(error)}.") from None
    return url


def check_target(repo: str) -> None:
    """Refuses a push that cannot work, without asking the Hub, so that a run can do it before it starts.

    Raises:
        UserError: `repo` is not "owner/name", the Hub must not be asked, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if not HUB_ID.fullmatch(repo):
        raise UserError(f"{repo} is not a repository on the Hub; expected OWNER/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repo} cannot be pushed to while HF_HUB_OFFLINE is set.")
    if not get_token():
        raise UserError(f"pushing to {repo} needs a token with write access: run `hf auth login` or set HF_TOKEN.")
