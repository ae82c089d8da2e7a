"""What a weight may be: a finite float of 16 bits or more. Anything else is refused when its file is read, by name.

An integer would train as the float of the same value, and NaN would show up in the first loss, after the compilation.
"""

from pathlib import Path

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.weights.safetensors_write import DTYPES

FLOATS = ("F64", "F32", "F16", "BF16")
EXPONENTS = {DTYPES["F16"]: np.uint16(0x7C00), DTYPES["BF16"]: np.uint16(0x7F80)}  # all ones: infinity or NaN


def weight_dtype(code: str, name: str, file: Path) -> np.dtype:
    """Returns the dtype of a weight from safetensors' word for it.

    Raises:
        UserError: it is no float, or one of 8 bits.
    """
    if code not in FLOATS:
        raise UserError(f"{file}: {ascii_repr(name)} is {code}; weights must be float16, bfloat16 or float32.")
    return DTYPES[code]


def finite(values: np.ndarray, name: str, file: Path) -> np.ndarray:
    """Returns the values of a weight as they are.

    Raises:
        UserError: one of them is NaN or infinite.
    """
    if not all_finite(values):
        raise UserError(
            f"{file}: {ascii_repr(name)} holds NaN or infinite values; the file is damaged, fetch another copy."
        )
    return values


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. numpy's own test takes seven times as long on 16 bits as one on the bits."""
    exponent = EXPONENTS.get(values.dtype)
    if exponent is None:
        return bool(np.isfinite(values).all())
    return not ((values.view(np.uint16) & exponent) == exponent).any()
