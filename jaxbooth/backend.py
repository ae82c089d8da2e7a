"""The backend that JAX runs on: its compilation cache, its share of a GPU, and a warning about an idle accelerator."""

import os
import tempfile
from pathlib import Path

import jax

from jaxbooth.console.messages import warn

# JAX takes three quarters of a GPU by default, and full fine-tuning needs more of a 24 GB card.
GPU_MEMORY_FRACTION = 0.92
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
GOOGLE = "0x1ae0"  # PCI vendor
TPU_CHIPS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # as in jax's hardware_utils
DEFAULT_CACHE = Path("~/.cache/jaxbooth/xla")


def find_accelerator() -> str | None:
    """Returns what accelerator this machine has, whether or not JAX can use it, such as "a TPU"."""
    if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():  # dxg: a GPU seen from WSL
        return "an NVIDIA GPU"
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if read_pci_id(device / "vendor") == GOOGLE and read_pci_id(device / "device") in TPU_CHIPS:
            return "a TPU"
    return None


def read_pci_id(path: Path) -> str:
    """Returns a PCI id such as `0x0063`, or an empty string."""
    return path.read_text().strip() if path.exists() else ""


def idle_accelerator() -> str | None:
    """Returns what accelerator this machine has, if JAX runs on the CPU in spite of it."""
    return find_accelerator() if jax.default_backend() == "cpu" else None


def warn_about_cpu_fallback() -> None:
    """Warns about an idle accelerator."""
    accelerator = idle_accelerator()
    if accelerator:
        extra = "tpu" if "TPU" in accelerator else "cuda13"
        warn(
            f"this machine has {accelerator}, but JAX fell back to the CPU: training will be far slower. "
            f"Run pip install 'jaxbooth[{extra}]', then jaxbooth doctor."
        )


def cache_dir() -> Path:
    """Returns the folder of JAX's persistent compilation cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE.expanduser())


def enable_compilation_cache() -> None:
    """Turns JAX's persistent compilation cache on, unless the user has set a folder for it or it cannot be written."""
    if os.environ.get(CACHE_VARIABLE) or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir()):
            pass
    except OSError as error:
        warn(f"no compilation cache: {cache_dir()} cannot be written ({error.strerror}); set {CACHE_VARIABLE}.")
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))


def peak_memory() -> dict[str, float]:
    """Returns {"peak_memory": GiB} that a device of this process has held so far, the largest of all; {} on the CPU."""
    statistics = [device.memory_stats() for device in jax.local_devices()]
    peaks = [values["peak_bytes_in_use"] for values in statistics if values and "peak_bytes_in_use" in values]
    return {"peak_memory": max(peaks) / 2**30} if peaks else {}
