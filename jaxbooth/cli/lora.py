"""`jaxbooth lora merge|resize|extract`: their flags."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from jaxbooth.cli.parse import parse
from jaxbooth.config import limits
from jaxbooth.config.section import Section
from jaxbooth.console.messages import print_plain
from jaxbooth.errors import UserError
from jaxbooth.lora_tools.merge import WeightedFile
from jaxbooth.lora_tools.write import LoraDtype, LoraLayout

LORA_USAGE = """usage: jaxbooth lora COMMAND ...

  merge FILE[:WEIGHT] ...    write the weighted sum of LoRAs, exactly: their ranks stand side by side
  resize FILE --rank R       write the nearest LoRA of another rank; a LoHa or LoKr becomes a LoRA
  extract MODEL --base BASE --rank R
                             write the LoRA that turns one model into another, as far as its rank goes

Each reads files in the layout of any trainer, and tells the error that it leaves. All take --out FILE,
--format peft or kohya, and --dtype; merge and resize take --base, resize and extract --errors FILE.
jaxbooth lora COMMAND --help lists the flags of a command."""
WEIGHTED = re.compile(r"(?P<file>.+):(?P<weight>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")
Out = Annotated[Path, arg(aliases=("--output",))]


class LoraFileArguments(Section):
    """What is common to all that write a LoRA file."""

    out: Out
    """New .safetensors file to write."""
    format: LoraLayout = "peft"
    """Names and alphas of the file: peft for diffusers; kohya for ComfyUI, the web UIs and kohya's tools, which of a
    flow transformer is ComfyUI's layout."""
    dtype: LoraDtype = "float32"
    """Dtype of the matrices."""


class LoraMergeArguments(LoraFileArguments):
    """Write the weighted sum of several LoRAs."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE[:WEIGHT] ...")] = ()
    """LoRA files, each with what its change is multiplied by (1 if left out), such as dog.safetensors:0.7."""
    base: str | None = None
    """Base model of the files, as `jaxbooth sample` takes it; default: the published one that they fit."""


class LoraResizeArguments(LoraFileArguments):
    """Write a LoRA, LoHa or LoKr as a LoRA of another rank."""

    file: Positional[Path]
    """LoRA file."""
    rank: limits.Rank
    """Highest rank of a layer."""
    base: str | None = None
    """Base model of the file, as `jaxbooth sample` takes it; default: the published one that it fits."""
    errors: Path | None = None
    """New JSON file for the error of every layer."""


class LoraExtractArguments(LoraFileArguments):
    """Write the LoRA that turns a base model into another model."""

    model: Positional[str]
    """Model to reach: a folder, a single .safetensors file or a Hub id."""
    base: str
    """Model to start from."""
    rank: limits.Rank
    """Highest rank of a layer."""
    errors: Path | None = None
    """New JSON file for the error of every layer."""


AnyArguments = (
    Annotated[LoraMergeArguments, subcommand("merge")]
    | Annotated[LoraResizeArguments, subcommand("resize")]
    | Annotated[LoraExtractArguments, subcommand("extract")]
)


def lora_arguments(command: Annotated[AnyArguments, arg(name="")]) -> Section:
    """Returns the arguments of one of the commands; a shell completes them by this signature."""
    return command


def lora_command(argv: list[str]) -> None:
    """Works on LoRA files and says what was done."""
    if not argv or argv[0] in ("-h", "--help"):
        print(LORA_USAGE)
        return
    if argv[0] not in LORA_COMMANDS:
        raise UserError(f"jaxbooth lora has no command {argv[0][:60]!r}; choose {', '.join(LORA_COMMANDS)}.")
    for message in LORA_COMMANDS[argv[0]](argv[1:]):
        print_plain(message)


def merge_command(argv: list[str]) -> list[str]:
    """Merges LoRA files."""
    arguments = parse(LoraMergeArguments, argv, "jaxbooth lora merge")
    if not arguments.files:
        raise UserError("jaxbooth lora merge needs files, such as a.safetensors:0.7 b.safetensors:0.5.")
    from jaxbooth.lora_tools.run import merge_files

    files = [weighted_file(text) for text in arguments.files]
    return merge_files(files, arguments.out, arguments.base, arguments.format, arguments.dtype)


def weighted_file(text: str) -> WeightedFile:
    """Reads FILE:WEIGHT, or FILE alone with weight 1.

    Raises:
        UserError: the weight is no number that float32 can hold.
    """
    match = WEIGHTED.fullmatch(text)
    if not match:
        return WeightedFile(Path(text), 1.0)
    weight = float(match["weight"])
    if not 0 < abs(weight) <= 1e6:
        raise UserError(f"{text}: its weight is {weight:g}; set a number up to 1000000 that is not 0.")
    return WeightedFile(Path(match["file"]), weight)


def resize_command(argv: list[str]) -> list[str]:
    """Resizes a LoRA file."""
    arguments = parse(LoraResizeArguments, argv, "jaxbooth lora resize")
    from jaxbooth.lora_tools.run import resize_file

    return resize_file(**arguments.model_dump())


def extract_command(argv: list[str]) -> list[str]:
    """Extracts a LoRA."""
    arguments = parse(LoraExtractArguments, argv, "jaxbooth lora extract")
    from jaxbooth.lora_tools.run import extract_file

    return extract_file(**arguments.model_dump())


LORA_COMMANDS: dict[str, Callable[[list[str]], list[str]]] = {
    "merge": merge_command,
    "resize": resize_command,
    "extract": extract_command,
}
