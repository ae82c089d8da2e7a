"""Whether a single file holds a flow model's transformer alone, and which published model it is of."""

import re
from pathlib import Path
from typing import NamedTuple

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.denoiser_file.names import DenoiserFile
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.family import Family
from jaxbooth.weights.names import canonical
from jaxbooth.weights.pickles import PICKLES
from jaxbooth.weights.single_file import find_other_model

# Beside quantized weights: of ComfyUI's float8, int8 and 4-bit files, of Nunchaku's, and of bitsandbytes'.
QUANTIZED = re.compile(
    r"(.*\.)?(scaled_fp8|scale_weight|weight_scale(_2)?|input_scale|comfy_quant|qweight|absmax|quant_map)"
)
FLOATS = ("F64", "F32", "F16", "BF16")


class Denoiser(NamedTuple):
    """A flow model's transformer in one file.

    Attributes:
        text_width: of the prompt embeddings that it takes.
    """

    file: Path
    family: Family
    text_width: int

    @property
    def published(self) -> str | None:
        """Hub id of the published model of the same size, if there is one."""
        return self.family.published_model(self.text_width)


def find_denoiser(file: Path) -> Denoiser | None:
    """Recognises a transformer in one file; None: the file holds something else, or is a pickle, as none of them is.

    Raises:
        UserError: the file is damaged or quantized.
    """
    if file.suffix.lower() in PICKLES:
        return None
    tensors = open_tensors(file)
    stored = sorted(tensors.keys())
    if find_other_model(stored):
        return None
    for family in FAMILIES.values():
        if family.denoiser_file:
            name = find_text_projection(stored, family.denoiser_file)
            if name:
                check_unquantized(file, {name: tensors.get_slice(name).get_dtype() for name in stored})
                return Denoiser(file, family, tensors.get_slice(name).get_shape()[1])
    return None


def find_text_projection(stored: list[str], spec: DenoiserFile) -> str | None:
    """Returns the name in a file of the matrix that takes the prompt embeddings in."""
    wanted = (spec.text_projection, spec.name(spec.text_projection))
    return next((name for name in stored if canonical(name, spec.renames) in wanted), None)


def check_unquantized(file: Path, dtypes: dict[str, str]) -> None:
    """Refuses weights of less than 16 bits.

    Args:
        dtypes: name of a tensor -> safetensors' word for its dtype.

    Raises:
        UserError: the message names a tensor.
    """
    for name, dtype in dtypes.items():
        if dtype not in FLOATS or QUANTIZED.fullmatch(name):
            raise UserError(
                f"{file} is quantized ({name} is {dtype}); training needs weights in bfloat16, float16 or float32: use "
                "the model's bf16 file."
            )
