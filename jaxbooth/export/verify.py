"""An export, read back from disk and compared with what was trained, tensor by tensor."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from jaxbooth.console.progress import progress
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.export.export import formats_of
from jaxbooth.export.format import Export, ReadBack


class Findings:
    """What a comparison came to: tensors seen, those that are wrong and how, the largest difference of the others."""

    def __init__(self) -> None:
        self.total, self.largest = 0, 0.0
        self.wrong: list[str] = []

    def add(self, tensor: ReadBack) -> None:
        """Counts and compares one tensor."""
        self.total += 1
        difference, problem = compare(tensor)
        if problem:
            self.wrong.append(f"{tensor.label} {problem}")
        else:
            self.largest = max(self.largest, difference)

    def sentence(self, out: Path) -> str:
        """Says that all is well.

        Raises:
            RunFailure: it is not; the message names the first tensor and how many there are.
        """
        if self.wrong:
            raise RunFailure(
                f"{out}: {len(self.wrong):,} of {self.total:,} tensors are not what was trained. The first: "
                f"{self.wrong[0]}. Remove this export and export again."
            )
        largest = f"{self.largest:.0e}, rounding of the adapters" if self.largest else "0"
        counted = f"{self.total:,} of {self.total:,} tensors"
        return f"verified {counted} (names, shapes, dtypes; largest difference {largest})"


def verify_export(export: Export) -> list[str]:
    """Reads what `write_export` wrote, and returns what was found, in sentences.

    Raises:
        RunFailure: the export is not what was trained or cannot be read.
    """
    findings, formats = Findings(), formats_of(export)
    try:
        with progress("verify", total=None) as bar:
            for format in formats:
                for tensor in format.read_back(export):
                    bar.set_postfix(tensor.label.partition(":")[0])
                    findings.add(tensor)
    except (UserError, SafetensorError, OSError) as error:
        raise RunFailure(f"{export.out} is not what was trained: {error}") from None
    return [findings.sentence(export.out), *export.format.check_configuration(export)]


def compare(tensor: ReadBack) -> tuple[float, str | None]:
    """Returns the largest difference from what a tensor should be, and what is wrong with it."""
    found, expected = tensor.found, tensor.expected
    if found is None:
        return 0.0, "is missing"
    if expected is None:
        return 0.0, "should not be there"
    if found.shape != expected.shape:
        return 0.0, f"has shape {found.shape} and should have {expected.shape}"
    if found.dtype != expected.dtype:
        return 0.0, f"is {found.dtype} and should be {expected.dtype}"
    if not np.isfinite(found.astype(np.float32)).all():
        return 0.0, f"holds values that are not finite in {found.dtype}; choose another --dtype"
    if np.array_equal(found, expected):
        return 0.0, None
    exact, read = expected.astype(np.float64), found.astype(np.float64)
    difference, size = np.abs(read - exact), np.abs(exact)
    largest = float(difference.max())
    allowed = tensor.error * size.max() + spacing(size, expected.dtype)
    if not tensor.error or (difference > allowed).any():
        return largest, f"differs by up to {largest:.0e} (its largest value is {size.max():.0e})"
    return largest, None


def spacing(size: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns at least the distance to the next value of a dtype, by which a tiny difference can move a cast."""
    limits: Any = ml_dtypes.finfo(dtype)
    return size * float(limits.eps) + float(limits.smallest_subnormal)
