"""An export, read back from disk and compared tensor by tensor with what should be there."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.export.expected import FLOAT32, MERGE_ERROR, Expected, Files, expected_files
from jaxbooth.export.export import PEFT_FILE, without_embeddings
from jaxbooth.models.lora import LORA_B
from jaxbooth.params import Params
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.diffusers_write import DTYPES, ExportDtype, ExportFormat
from jaxbooth.weights.lora.read import LoraWeights, read_lora
from jaxbooth.weights.safetensors_write import stored_dtype


class Findings:
    """What a comparison came to: tensors seen, those that are wrong and how, the largest difference of the others."""

    def __init__(self) -> None:
        self.total, self.largest = 0, 0.0
        self.wrong: list[str] = []

    def add(self, tensor: str, difference: float, problem: str | None) -> None:
        """Counts one tensor."""
        self.total += 1
        if problem:
            self.wrong.append(f"{tensor} {problem}")
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


def verify_export(
    config: Config,
    base: BaseModel,
    trained: dict[str, Params],
    mesh: Mesh,
    out: Path,
    format: ExportFormat,
    dtype: ExportDtype,
    with_torch: bool,
) -> list[str]:
    """Reads what `export_result` wrote with the same arguments, and returns what was found, in sentences.

    Args:
        base: with the run's adapters and placeholder tokens.
        trained: component -> trained parameters.
        out: the export's folder.
        with_torch: also open the export in PyTorch and compare a denoising step.

    Raises:
        RunFailure: the export is not what was trained or cannot be read, or PyTorch makes something else of it.
        UserError: `with_torch`, and PyTorch, diffusers or peft is not installed.
    """
    findings = Findings()
    try:
        if format == "lora":
            check_lora(base, trained, out, DTYPES[dtype] or FLOAT32, findings)
        files = expected_files(base, trained, out, format, dtype)
        if files:  # a LoRA alone has its own way
            check_files(files, out, findings)
    except (UserError, SafetensorError, OSError) as error:
        raise RunFailure(f"{out} is not what was trained: {error}") from None
    done = [findings.sentence(out), *check_end_token(base, out, format)]
    if with_torch:
        from jaxbooth.export.verify_torch import compare_with_torch  # PyTorch is an extra

        done.append(compare_with_torch(config, base, trained, mesh, out, format, dtype))
    return done


def check_end_token(base: BaseModel, out: Path, format: ExportFormat) -> list[str]:
    """Makes sure that a folder names the end token where new tokens would be taken for it.

    Raises:
        RunFailure: it does not.
    """
    end, name = base.text.eos_token_id_to_set, base.text_encoder_names[-1]
    if format != "diffusers" or end is None:
        return []
    named = read_json(out / name / "config.json").get("eos_token_id")
    if named != end:
        raise RunFailure(
            f"{out / name / 'config.json'}: eos_token_id is {named} and should be {end}, or PyTorch reads the pooled "
            "text at a placeholder token. Remove this export and export again."
        )
    return [f"its {name} names the end token {end}"]


def check_files(files: Files, out: Path, findings: Findings) -> None:
    """Compares all tensors of weight files, one at a time, under a progress bar."""
    with progress("verify", sum(map(len, files.values()))) as bar:
        for path, tensors in files.items():
            where = path.relative_to(out).as_posix()
            bar.set_postfix(where)
            with open_tensors(path) as file:
                found = set(file.keys())
                for wanted in tensors:
                    if wanted.name in found:
                        findings.add(f"{where}: {wanted.name}", *check_tensor(file.get_tensor(wanted.name), wanted))
                    else:
                        findings.add(f"{where}: {wanted.name}", 0.0, "is missing")
                    bar.advance()
            for name in sorted(found - {wanted.name for wanted in tensors}):
                findings.add(f"{where}: {name}", 0.0, "should not be there")


def check_tensor(found: np.ndarray, wanted: Expected) -> tuple[float, str | None]:
    """Returns the largest difference from what a tensor should be, and what is wrong with it."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return 0.0, f"is {found.dtype} {found.shape} and should be {wanted.dtype} {wanted.shape}"
    with np.errstate(over="ignore"):  # it is reported below
        value = wanted.value().astype(wanted.dtype)
    if not np.isfinite(found.astype(np.float32)).all():
        return 0.0, f"holds values that are not finite in {found.dtype}; choose another --dtype"
    if np.array_equal(found, value):
        return 0.0, None
    exact, read = value.astype(np.float64), found.astype(np.float64)
    difference, size = np.abs(read - exact), np.abs(exact)
    largest = float(difference.max())
    if not wanted.error or (difference > wanted.error * size.max() + spacing(size, wanted.dtype)).any():
        return largest, f"differs by up to {largest:.0e} (its largest value is {size.max():.0e})"
    return largest, None


def spacing(size: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns at least the distance to the next value of a dtype, by which a tiny difference can move a cast."""
    facts: Any = ml_dtypes.finfo(dtype)
    return size * float(facts.eps) + float(facts.smallest_subnormal)


def check_lora(base: BaseModel, trained: Mapping[str, Params], out: Path, dtype: np.dtype, findings: Findings) -> None:
    """Reads both files of a LoRA and compares their adapters with the trained ones.

    Raises:
        UserError: a file is missing, or is no LoRA for this base model.
    """
    networks = {name: base.module(name) for name in base.trainable_components()}
    adapters = {
        f"{component}.{name}": value
        for component, params in trained.items()
        for name, value in without_embeddings(params).items()
    }
    for path in (out / PEFT_FILE, out / f"{out.name}_kohya.safetensors"):
        lora = read_lora(path, networks, base.denoiser_config)
        check_dtypes(path, dtype, findings)
        for name, trained_value in adapters.items():
            if name in lora.adapters:
                wanted = expected_adapter(base, name, trained_value, lora, dtype)
                difference, problem = check_tensor(lora.adapters[name].astype(dtype), wanted)
            else:
                difference, problem = 0.0, "is missing"
            findings.add(f"{path.name}: {name}", difference, problem)
        for name in sorted(set(lora.adapters) - set(adapters)):
            findings.add(f"{path.name}: {name}", 0.0, "should not be there")


def expected_adapter(base: BaseModel, name: str, trained: Any, lora: LoraWeights, dtype: np.dtype) -> Expected:
    """Returns an adapter's matrix as a file should hold it: what the file's alpha does not say is in its B."""
    assert base.lora is not None
    value, factor = np.asarray(trained), 1.0
    if name.endswith(LORA_B):
        factor = base.lora.scale * base.lora.rank / lora.alphas[name.removesuffix(f".{LORA_B}")]
    if math.isclose(factor, 1, rel_tol=1e-6):  # alphas are stored in float32
        return Expected(name, value.shape, dtype, lambda: value)
    return Expected(name, value.shape, dtype, lambda: value.astype(np.float64) * factor, MERGE_ERROR)


def check_dtypes(path: Path, dtype: np.dtype, findings: Findings) -> None:
    """Makes sure that a LoRA's matrices are stored as asked for; alphas are always float32, and count as tensors."""
    with open_tensors(path) as file:
        for name in sorted(file.keys()):
            is_alpha = name.endswith(".alpha")
            wanted, found = FLOAT32 if is_alpha else dtype, stored_dtype(file, name, path)
            problem = None if found == wanted else f"is {found} and should be {wanted}"
            if is_alpha or problem:
                findings.add(f"{path.name}: {name}", 0.0, problem)
