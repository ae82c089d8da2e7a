"""An exported model, out to the Hugging Face Hub, with a model card that says how to use it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import Family
from jaxbooth.weights.diffusers_write import ExportFormat
from jaxbooth.weights.hub import hub_errors, reason_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
KINDS: dict[ExportFormat, str] = {
    "diffusers": "A full fine-tuning of",
    "single-file": "A full fine-tuning of",
    "lora": "A LoRA for",
    "embeddings": "A textual inversion for",
}


@dataclass(frozen=True)
class CardContent:
    """What a model card tells.

    Attributes:
        repo: "owner/name" that the model is pushed to.
        base_model: as the user named it; a local path appears by its last part alone.
        format: the format that was exported.
        family: of the base model.
        instance_prompts, class_prompts: of each subject.
        settings: name -> value, for the table.
        prior: what the class pictures are, name -> value; empty if there was no prior term.
        license: a Hub licence identifier; None where it is not known.
        image: file name of the sample grid in the pushed folder.
        weights: the weight file of a single file or of a LoRA for diffusers.
        embeddings: placeholder token -> its file, which holds word -> vectors, and for SDXL `clip_l` and `clip_g`.
        notes: what readers must be told or not be given, in sentences.
        end_token_line: Python that a pipeline needs before it draws with placeholder tokens; a folder needs none.
    """

    repo: str
    base_model: str
    format: ExportFormat
    family: Family
    instance_prompts: tuple[str, ...]
    class_prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    image: str | None = None
    weights: str | None = None
    embeddings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    end_token_line: str | None = None

    @property
    def base_id(self) -> str | None:
        """The base model's Hub id, if it has one."""
        owner_and_name = "/".join(self.base_model.split("/")[:2])
        return owner_and_name if HUB_ID.fullmatch(owner_and_name) and not self.is_local else None

    @property
    def base_file(self) -> str | None:
        """The base model's file in its Hub repository, if it is a single one."""
        return "/".join(self.base_model.split("/")[2:]) or None if self.base_id else None

    @property
    def is_local(self) -> bool:
        """Whether the base model was a path."""
        return self.base_model.startswith((".", "/", "~")) or Path(self.base_model).exists()


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


def model_card(card: CardContent) -> str:
    """Returns the content of README.md: front matter that the Hub reads, and Markdown."""
    parts = [
        f"---\n{front_matter(card)}\n---",
        f"# {card.repo.rpartition('/')[2]}",
        introduction(card),
        f"![Pictures drawn with this model]({card.image})" if card.image else "",
        "## Prompts\n\n" + prompts(card),
        f"## Use\n\n```python\n{snippet(card)}\n```",
        "\n".join(f"- {note[0].upper()}{note[1:]}." for note in card.notes),
        "## Training\n\n" + table(card.settings) if card.settings else "",
        "## Class prior\n\n" + prior(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: CardContent) -> str:
    """Returns the YAML block."""
    from huggingface_hub import ModelCardData

    tags = ["text-to-image", "diffusers", "dreambooth", card.family.hub_tag]
    tags += ["lora", "template:sd-lora"] if card.format == "lora" else []
    tags += ["textual_inversion"] if card.embeddings else []
    prompt = card.instance_prompts[0] if card.instance_prompts else None
    widget = [{"text": prompt or " ", "output": {"url": card.image}}] if card.image else None
    data = ModelCardData(
        base_model=card.base_id,
        library_name="diffusers",
        license=card.license or "other",
        pipeline_tag="text-to-image",
        tags=tags,
        instance_prompt=prompt,
        widget=widget,
    )
    return data.to_yaml()


def introduction(card: CardContent) -> str:
    """Returns what the model is, in two sentences."""
    name = f"[{card.base_id}](https://huggingface.co/{card.base_id})" if card.base_id else Path(card.base_model).name
    licence = "" if card.license else " The base model's licence applies."
    return f"{KINDS[card.format]} {name} with DreamBooth, trained with jaxbooth.{licence}"


def prompts(card: CardContent) -> str:
    """Returns the prompts as a list."""
    lines = [f"- subject: {quoted(prompt)}" for prompt in card.instance_prompts]
    lines += [f"- class: {quoted(prompt)}" for prompt in card.class_prompts]
    lines += [f"- placeholder token: {quoted(token)}" for token in card.embeddings]
    return "\n".join(lines)


def quoted(value: Any) -> str:
    """Returns a value as code in Markdown, on one line."""
    text = " ".join(str(value).split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(rows: Mapping[str, Any]) -> str:
    """Returns names and values as a Markdown table."""
    cells = [(name, quoted(value)) for name, value in rows.items() if value is not None]
    lines = ["| {} | {} |".format(*(cell.replace("|", "\\|") for cell in row)) for row in cells]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])


def prior(card: CardContent) -> str:
    """Returns what the class pictures are."""
    if not card.prior:
        return "Trained without a prior term."
    return "The model was also trained on pictures of its class:\n\n" + table(card.prior)


def snippet(card: CardContent) -> str:
    """Returns Python code that draws a picture with diffusers."""
    prompt = card.instance_prompts[0] if card.instance_prompts else ""
    lines = ["import torch", "from diffusers import AutoPipelineForText2Image", ""]
    is_part = card.format in ("lora", "embeddings")
    repo = card.base_id or Path(card.base_model).name if is_part else card.repo
    file = card.base_file if is_part else card.weights
    load = f"AutoPipelineForText2Image.from_pretrained({repo!r}, torch_dtype=torch.float16)"
    if file:
        pipeline = card.family.pipeline
        lines = ["import torch", f"from diffusers import {pipeline}", "from huggingface_hub import hf_hub_download", ""]
        lines += [f"file = hf_hub_download({repo!r}, {file!r})"]
        # A folder on the Hub tells scheduler and tokenizer; without one, diffusers goes by the file's tensors.
        config = f"config={card.base_id!r}, " if card.base_id and not card.base_file else ""
        load = f"{pipeline}.from_single_file(file, {config}torch_dtype=torch.float16)"
    lines += [f"pipe = {load}.to('cuda')"]
    if card.format == "lora":
        lines += [f"pipe.load_lora_weights({card.repo!r}, weight_name={card.weights!r})"]
    lines += words(card)
    lines += [card.end_token_line] if card.end_token_line and card.format != "diffusers" else []
    return "\n".join([*lines, f"image = pipe({prompt!r}).images[0]", "image.save('picture.png')"])


def words(card: CardContent) -> list[str]:
    """Returns the lines of Python that give placeholder tokens to a pipeline."""
    if len(card.family.text_encoders) == 1:
        return [f"pipe.load_textual_inversion({card.repo!r}, weight_name={file!r}, token={word!r})"
                for word, file in card.embeddings.items()]  # fmt: skip
    lines = ["", "from huggingface_hub import hf_hub_download", "from safetensors.torch import load_file", ""]
    for word, file in card.embeddings.items():
        lines += [f"vectors = load_file(hf_hub_download({card.repo!r}, {file!r}))"]
        lines += [
            f"pipe.load_textual_inversion(vectors[{encoder.embedding_key!r}], token={word!r},\n"
            f"                            text_encoder=pipe.{encoder.component}, tokenizer=pipe.{encoder.tokenizer})"
            for encoder in card.family.text_encoders
        ]
    return lines if card.embeddings else []
