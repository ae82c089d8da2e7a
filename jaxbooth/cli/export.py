"""`jaxbooth export`: its flags."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxbooth.cli.parse import parse
from jaxbooth.config import limits
from jaxbooth.config.section import Section
from jaxbooth.console.messages import print_result
from jaxbooth.errors import UserError
from jaxbooth.export.export import FORMAT_HELP, FormatName
from jaxbooth.weights.diffusers_write import ExportDtype


class ExportArguments(Section):
    """Write what a run has trained in a format that PyTorch tools read."""

    run: Positional[str]
    """Run folder."""
    out: Path
    """New folder to write."""
    format: Annotated[
        FormatName | None, arg(help=f"{FORMAT_HELP}. Default: the smallest format that holds what was trained.")
    ] = None
    dtype: ExportDtype | None = None
    """Dtype of the weights; base: that of the base model's files (float32 for a LoRA). Default: float32 for diffusers,
    which then opens without naming a dtype, else base."""
    verify: bool = False
    """Open the result in PyTorch's diffusers and compare one denoising step (needs jaxbooth[torch])."""
    step: limits.Step | None = None
    """Step of the checkpoint; default: the newest."""
    push: str | None = None
    """Upload the result, with a model card, to the repository OWNER/NAME on the Hugging Face Hub."""
    public: bool = False
    """Make the repository public if --push creates it."""
    license: str | None = None
    """License for the model card, such as creativeml-openrail-m."""


def export_command(argv: list[str]) -> None:
    """Exports a run and says what was done."""
    arguments = parse(ExportArguments, argv, "jaxbooth export")
    for flag, value in (("--public", arguments.public), ("--license", arguments.license)):
        if value and not arguments.push:
            raise UserError(f"{flag} is about the repository of --push OWNER/NAME; add it.")
    from jaxbooth.cli.export_run import export

    for message in export(**arguments.model_dump()):
        print_result(message)
