"""What `jaxbooth lora` does: reads, works, writes one file, and says what became of it."""

from collections.abc import Sequence
from pathlib import Path

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import UserError
from jaxbooth.lora_tools.extract import extract_lora
from jaxbooth.lora_tools.merge import WeightedFile, merge_loras
from jaxbooth.lora_tools.resize import resize_lora
from jaxbooth.lora_tools.structure import read_files, structure_of
from jaxbooth.lora_tools.svd import LayerError, total_error
from jaxbooth.lora_tools.write import LoraDtype, LoraLayout, check_new_file, write_lora
from jaxbooth.storage.files import write_json
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.source import Source

SHOWN = 3  # layers with the largest errors


def merge_files(
    files: Sequence[WeightedFile], out: Path, base: str | None, format: LoraLayout, dtype: LoraDtype
) -> list[str]:
    """Writes the weighted sum of LoRA files; returns messages that say what was done.

    Raises:
        UserError: `out` exists, a file is no LoRA, or it is for another base model.
    """
    check_new_file(out)
    loras, structure = read_files([file.path for file in files], base)
    merged = merge_loras(files, loras)
    parts = "; ".join(f"{file.path.name}:{file.weight:g}" for file in files)
    write_lora(out, merged, structure, format, dtype, {"jaxbooth.lora_merge": parts})
    return [f"merged {len(files)} files into {out}: {describe(merged)}"]


def resize_file(
    file: Path, rank: int, out: Path, base: str | None, format: LoraLayout, dtype: LoraDtype, errors: Path | None
) -> list[str]:
    """Writes a LoRA, LoHa or LoKr as a LoRA of another rank; returns messages, with the error.

    Raises:
        UserError: `out` exists, the file is no LoRA or a DoRA.
    """
    check_new_file(out)
    check_absent(errors)
    [lora], structure = read_files([file], base)
    resized, layer_errors = resize_lora(file, lora, rank)
    write_lora(out, resized, structure, format, dtype, {"jaxbooth.lora_resize": f"{file.name} to rank {rank}"})
    return [f"wrote {out}: {describe(resized)}", *describe_errors(layer_errors, errors)]


def extract_file(
    model: str, base: str, rank: int, out: Path, format: LoraLayout, dtype: LoraDtype, errors: Path | None
) -> list[str]:
    """Writes the LoRA that turns a base model into another model; returns messages, with the error.

    Raises:
        UserError: `out` exists, or the models do not go together.
    """
    check_new_file(out)
    check_absent(errors)
    ours, theirs = (BaseModel.read(resolve_model(Source(name)), "float32") for name in (model, base))
    lora, layer_errors, lost = extract_lora(ours, theirs, rank)
    metadata = {"jaxbooth.lora_extract": f"{Path(model).name} from {Path(base).name}"}
    write_lora(out, lora, structure_of(theirs), format, dtype, metadata)
    messages = [f"wrote {out}: {describe(lora)}", *describe_errors(layer_errors, errors)]
    if lost:
        messages.append(
            f"{len(lost)} parameters that differ are no kernels, such as {lost[0]}; a LoRA cannot hold them"
        )
    return messages


def describe(lora: LoraWeights) -> str:
    """Says how many layers a LoRA has, and of which ranks."""
    ranks = sorted({value.shape[-1] for name, value in lora.adapters.items() if name.endswith("lora_A.kernel")})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return f"{len(lora.alphas)} layers of {shown}"


def describe_errors(layer_errors: Sequence[LayerError], file: Path | None) -> list[str]:
    """Says what was left out, in all and where most; writes it for every layer, if a file is named."""
    largest = sorted(layer_errors, key=lambda error: error.relative, reverse=True)[:SHOWN]
    worst = ", ".join(f"{error.layer} {error.relative:.2g}" for error in largest)
    messages = [f"relative error {total_error(layer_errors):.2g} in all; largest: {worst}"]
    if file:
        layers = {error.layer: error.relative for error in layer_errors}
        write_json(file, {"relative_error": total_error(layer_errors), "layers": layers})
        messages.append(f"the error of every layer is in {file}")
    return messages


def check_absent(errors: Path | None) -> None:
    """Refuses a file of errors that exists.

    Raises:
        UserError: the message names the flag.
    """
    if errors and errors.exists():
        raise UserError(f"--errors {errors} exists already, and no file is overwritten; choose another.")
