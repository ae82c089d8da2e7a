"""Which backend JAX really uses, and whether the machine promised a better one."""

import os
import tempfile
from pathlib import Path

import jax

from jaxbooth.console.messages import warn

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
GOOGLE = "0x1ae0"
TPU_CHIPS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # as in jax's hardware_utils
DEFAULT_CACHE = Path("~/.cache/jaxbooth/xla")


def accelerator_present() -> str | None:
    """Names the accelerator that this machine has, whether or not JAX can use it."""
    if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():  # dxg: a GPU seen from WSL
        return "an NVIDIA GPU"
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if read_id(device / "vendor") == GOOGLE and read_id(device / "device") in TPU_CHIPS:
            return "a TPU"
    return None


def read_id(path: Path) -> str:
    """Reads a PCI id such as `0x0063`; empty if there is none."""
    return path.read_text().strip() if path.exists() else ""


def idle_accelerator() -> str | None:
    """Names the accelerator that is here while JAX runs on the CPU all the same."""
    return accelerator_present() if jax.default_backend() == "cpu" else None


def warn_about_cpu_fallback() -> None:
    """Warns loudly about an idle accelerator."""
    found = idle_accelerator()
    if found:
        extra = "tpu" if "TPU" in found else "cuda13"
        warn(
            f"this machine has {found}, but JAX fell back to the CPU: training will be far slower. "
            f"Run pip install 'jaxbooth[{extra}]', then jaxbooth doctor."
        )


def cache_dir() -> Path:
    """Returns the folder of JAX's persistent compilation cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE.expanduser())


def enable_compilation_cache() -> None:
    """Turns the persistent compilation cache on, unless the user has chosen a folder for it or it cannot be written."""
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
