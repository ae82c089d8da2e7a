"""The model card of an export: front matter that the Hub reads, and Markdown that says how to use the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxbooth.base.model import BaseModel
from jaxbooth.config.prior import describe_terms
from jaxbooth.config.run_config import Config
from jaxbooth.export.export import EMBEDDINGS
from jaxbooth.export.format import Export, ExportFormat
from jaxbooth.export.metadata import class_prompts, prior_settings, training_settings
from jaxbooth.export.notes import end_token_code, reader_notes
from jaxbooth.export.upload import HUB_ID
from jaxbooth.weights.family import Family
from jaxbooth.weights.resolve import CHECKPOINTS

SAMPLES_FILE = "samples.png"


@dataclass(frozen=True)
class CardContent:
    """What a model card tells.

    Attributes:
        repo: "owner/name" that the model is pushed to.
        base_model: as the user named it; a local path appears by its last part alone.
        format: of the export.
        name: of the export's folder, after which its files are named.
        files: of the export, by their names.
        family: of the base model.
        instance_prompts, class_prompts: of each subject.
        tokens: placeholder tokens that were learned.
        settings: name -> value, for the table.
        prior: where the class images come from, name -> value; empty if there are none.
        prior_terms: what kept the class as it was, see `describe_terms`.
        license: a Hub licence identifier; None where it is not known.
        image: file name of the sample grid in the pushed folder.
        notes: what readers must be told or not be given, in sentences.
        end_token_code: Python that a pipeline needs before it meets placeholder tokens.
        components: Hub id of the model that text encoder, VAE and scheduler are of, where the base model was a file of
            the denoiser alone.
    """

    repo: str
    base_model: str
    format: ExportFormat
    name: str
    family: Family
    instance_prompts: tuple[str, ...]
    class_prompts: tuple[str, ...] = ()
    files: Sequence[str] = ()
    tokens: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    prior_terms: str = "none"
    license: str | None = None
    image: str | None = None
    notes: Sequence[str] = ()
    end_token_code: str | None = None
    components: str | None = None

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


def run_model_card(
    config: Config, export: Export, repo: str, step: int, license: str | None = None, grid: Path | None = None
) -> str:
    """Returns the model card of a run's export, and puts a sample grid beside the weights.

    Args:
        repo: "owner/name" that the export will be pushed to.
        step: of the exported checkpoint.
        license: a Hub licence identifier.
        grid: image file of the run's samples.
    """
    if grid:
        (export.out / SAMPLES_FILE).write_bytes(grid.read_bytes())
    return model_card(
        CardContent(
            repo=repo,
            base_model=config.model,
            format=export.format,
            name=export.out.name,
            family=export.base.family,
            instance_prompts=tuple(subject.instance_prompt for subject in config.subjects),
            class_prompts=class_prompts(config) if config.prior_terms else (),
            files=[path.name for path in export.out.iterdir()],
            tokens=export.tokens,
            settings=training_settings(config, export.base, step),
            prior=prior_settings(config, export.base) if config.prior.uses_class_images else {},
            prior_terms=describe_terms(config.prior_terms),
            license=license,
            image=SAMPLES_FILE if grid else None,
            notes=reader_notes(export),
            end_token_code=None if export.format.has_configuration else end_token_code(export.base),
            components=components_of(config, export.base),
        )
    )


def components_of(config: Config, base: BaseModel) -> str | None:
    """Returns the model that the other parts are of, of a base model that is one file of the denoiser alone."""
    if base.family.denoiser_file is None or Path(config.model).suffix not in CHECKPOINTS:
        return None
    named = config.components
    if named:
        return Path(named).name if Path(named).exists() else named
    return base.family.published_model(base.denoiser_config.text_width)


def model_card(card: CardContent) -> str:
    """Returns the content of README.md."""
    parts = [
        f"---\n{front_matter(card)}\n---",
        f"# {card.repo.rpartition('/')[2]}",
        introduction(card),
        f"![Images generated with this model]({card.image})" if card.image else "",
        "## Prompts\n\n" + prompt_list(card),
        f"## Use\n\n```python\n{usage_code(card)}\n```",
        "\n".join(f"- {note[0].upper()}{note[1:]}." for note in card.notes),
        "## Training\n\n" + table(card.settings) if card.settings else "",
        "## Class prior\n\n" + class_prior(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: CardContent) -> str:
    """Returns the YAML block."""
    from huggingface_hub import ModelCardData

    prompt = card.instance_prompts[0] if card.instance_prompts else None
    data = ModelCardData(
        base_model=card.base_id,
        library_name="diffusers",
        license=card.license or "other",
        pipeline_tag="text-to-image",
        tags=[
            "text-to-image",
            "diffusers",
            "dreambooth",
            card.family.hub_tag,
            *card.format.hub_tags,
            *(["textual_inversion"] if card.tokens else []),
        ],
        instance_prompt=prompt,
        widget=[{"text": prompt or " ", "output": {"url": card.image}}] if card.image else None,
    )
    return data.to_yaml()


def introduction(card: CardContent) -> str:
    """Returns what the model is, in two sentences."""
    name = Path(card.base_model).name
    if card.base_id:
        name = f"[{card.base_id}](https://huggingface.co/{card.base_id})"
    licence = "" if card.license else " The base model's licence applies."
    return f"{card.format.introduction} {name} with DreamBooth, trained with jaxbooth.{licence}"


def prompt_list(card: CardContent) -> str:
    """Returns the prompts as a list."""
    lines = [f"- subject: {quoted(prompt)}" for prompt in card.instance_prompts]
    lines += [f"- class: {quoted(prompt)}" for prompt in card.class_prompts]
    lines += [f"- placeholder token: {quoted(token)}" for token in card.tokens]
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


def class_prior(card: CardContent) -> str:
    """Returns what kept the class as it was, and where class images come from."""
    if card.prior_terms == "none":
        return "Trained without a prior term."
    terms = f"Terms that keep what the base model knew, with their weights: {card.prior_terms}."
    if not card.prior:
        return terms
    return f"{terms}\n\nThe class images:\n\n{table(card.prior)}"


def usage_code(card: CardContent) -> str:
    """Returns Python code that generates an image with diffusers."""
    prompt = card.instance_prompts[0] if card.instance_prompts else ""
    repo, file = card.base_id or Path(card.base_model).name, card.base_file
    if card.format.is_whole_model:
        repo, file = card.repo, card.format.weights_file(card.name)
    if file is None:
        lines = folder_code(card, repo)
    elif card.family.denoiser_file:
        lines = denoiser_file_code(card, repo, file)
    else:
        lines = whole_file_code(card, repo, file)
    for format in dict.fromkeys([card.format, EMBEDDINGS]):
        lines += format.loading_code(card.repo, card.family, card.tokens, card.files)
    lines += [card.end_token_code] if card.end_token_code else []
    return "\n".join(["import torch", *lines, f"image = pipe(prompt={prompt!r}).images[0]", "image.save('image.png')"])


def folder_code(card: CardContent, repo: str) -> list[str]:
    """Returns the lines that open a model in diffusers layout."""
    load = f"AutoPipelineForText2Image.from_pretrained({repo!r}, torch_dtype=torch.{card.family.half_dtype})"
    return ["from diffusers import AutoPipelineForText2Image", "", f"pipe = {load}.to('cuda')"]


def whole_file_code(card: CardContent, repo: str, file: str) -> list[str]:
    """Returns the lines that open a whole model in one file.

    A folder on the Hub tells scheduler and tokenizer; without one, diffusers goes by the file's tensors.
    """
    pipeline, dtype = card.family.pipeline, card.family.half_dtype
    config = f"config={card.base_id!r}, " if card.base_id and not card.base_file else ""
    return [
        f"from diffusers import {pipeline}",
        "from huggingface_hub import hf_hub_download",
        "",
        f"file = hf_hub_download({repo!r}, {file!r})",
        f"pipe = {pipeline}.from_single_file(file, {config}torch_dtype=torch.{dtype}).to('cuda')",
    ]


def denoiser_file_code(card: CardContent, repo: str, file: str) -> list[str]:
    """Returns the lines that open a file of the denoiser alone, in the model that the other parts are of."""
    pipeline, denoiser = card.family.pipeline, card.family.denoiser
    dtype = f"torch_dtype=torch.{card.family.half_dtype}"
    model = card.components or (card.base_id if not card.base_file else None) or Path(card.base_model).name
    return [
        f"from diffusers import {pipeline}, {denoiser.class_name}",
        "from huggingface_hub import hf_hub_download",
        "",
        f"model = {model!r}",
        f"file = hf_hub_download({repo!r}, {file!r})",
        f"{denoiser.component} = {denoiser.class_name}.from_single_file(",
        f"    file, config=model, subfolder={denoiser.component!r}, {dtype}",
        ")",
        f"pipe = {pipeline}.from_pretrained(model, {denoiser.component}={denoiser.component}, {dtype}).to('cuda')",
    ]
