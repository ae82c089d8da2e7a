"""A trained model as files that other tools read. `FORMATS` is the one list of formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.config.schema import LoraConfig, TextConfig
from jaxbooth.errors import UserError
from jaxbooth.export.diffusers import DiffusersFormat
from jaxbooth.export.embeddings import EmbeddingsFormat
from jaxbooth.export.format import Export, ExportFormat
from jaxbooth.export.lora import LoraFormat, adapter_format
from jaxbooth.export.lycoris import LycorisFormat
from jaxbooth.export.single_file import SingleFileFormat
from jaxbooth.params import Params
from jaxbooth.storage.files import new_folder
from jaxbooth.weights.diffusers_write import ExportDtype

EMBEDDINGS = EmbeddingsFormat()
FORMATS: dict[str, ExportFormat] = {
    format.name: format
    for format in (
        DiffusersFormat(),
        SingleFileFormat(),
        LoraFormat(),
        LycorisFormat("loha"),
        LycorisFormat("lokr"),
        EMBEDDINGS,
    )
}
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # the choices of --format
FORMAT_HELP = "; ".join(f"{format.name}: {format.help}" for format in FORMATS.values())


def default_format(lora: LoraConfig, text: TextConfig) -> FormatName:
    """Returns the smallest format that holds all of what a run trains."""
    if lora.rank:
        return adapter_format(lora.kind)
    return "embeddings" if text.is_textual_inversion else "diffusers"


def make_export(
    base: BaseModel,
    trained: dict[str, Params],
    mesh: Mesh,
    out: Path,
    format: FormatName,
    dtype: ExportDtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Export:
    """Describes an export.

    Args:
        base: with the run's adapters and placeholder tokens.
        trained: component -> trained parameters.
        out: the export's folder.
        dtype: of the weights; default: the format's own.
        metadata: of the weight files.

    Raises:
        UserError: the run trained nothing that the format can hold, or `out` names a file.
    """
    if out.suffix == ".safetensors":
        raise UserError(f"--out {out} names a file; name a folder, the file in it is named after it.")
    chosen = FORMATS[format]
    chosen.check(base)
    return Export(base, trained, mesh, out, chosen, dtype or chosen.default_dtype(base.family), metadata or {})


def write_export(export: Export) -> Path:
    """Writes an export into its new folder, and returns the file or folder to open.

    Raises:
        UserError: the folder exists already.
    """
    with new_folder(export.out) as folder:
        for format in formats_of(export):
            format.write(export, folder)
    file = export.format.weights_file(export.out.name)
    return export.out / file if file and export.format.is_whole_model else export.out


def formats_of(export: Export) -> list[ExportFormat]:
    """Returns the formats of an export's files: its own, and that of the learned embeddings beside them."""
    has_more = export.tokens and export.format is not EMBEDDINGS
    return [export.format, *([EMBEDDINGS] if has_more else [])]
