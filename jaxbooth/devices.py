"""Which backend JAX really uses, and whether the machine promised a better one."""

import os
from pathlib import Path

import jax

from jaxbooth.console import warn

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
DEFAULT_CACHE = Path("~/.cache/jaxbooth/xla")


def accelerator_present() -> str | None:
    """Names the accelerator whose device files this machine has, whether or not JAX can use it."""
    if Path("/dev/nvidiactl").exists():
        return "an NVIDIA GPU"
    if any(Path("/dev").glob("accel*")):
        return "a TPU"
    return None


def warn_about_cpu_fallback() -> None:
    """Warns loudly when an accelerator is here and JAX runs on the CPU all the same."""
    found = accelerator_present()
    if found and jax.default_backend() == "cpu":
        extra = "tpu" if "TPU" in found else "cuda13"
        warn(
            f"this machine has {found}, but JAX fell back to the CPU: training will be far slower. "
            f"Run pip install 'jaxbooth[{extra}]', then jaxbooth doctor."
        )


def cache_dir() -> Path:
    """Returns the folder of JAX's persistent compilation cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE.expanduser())


def enable_compilation_cache() -> None:
    """Turns the persistent compilation cache on, so that the same program is compiled once on this machine."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
