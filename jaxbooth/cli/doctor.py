"""`jaxbooth doctor`: what is installed, what JAX really runs on, and where things are kept."""

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxbooth.backend import cache_dir, idle_accelerator
from jaxbooth.weights.prepare import cache_folder

PACKAGES = (
    "jaxbooth",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "safetensors",
    "diffusers",
    "torch",
)


def convolution_check() -> str:
    """Runs a tiny convolution on the default device and says where it ran and whether the numbers are right."""
    began = time.perf_counter()
    image, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    out = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )(image, kernel)
    right = bool(jnp.allclose(out, 36.0))
    seconds = time.perf_counter() - began
    return f"{'right' if right else 'WRONG'} on {next(iter(out.devices()))}, {seconds:.2f} s with its compilation"


def version(package: str) -> str:
    """Returns an installed version, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cache_line(name: str, path: Path) -> tuple[str, str]:
    """Describes a cache folder and its size."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()] if path.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    return name, f"{path}, {size / 1e9:.2f} GB"


def summary() -> Iterator[tuple[str, str]]:
    """Yields what to print, as (name, value)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from ((package, version(package)) for package in PACKAGES)
    yield "backend", jax.default_backend()
    yield "devices", ", ".join(f"{device.id}: {device.device_kind}" for device in jax.devices())
    yield "convolution", convolution_check()
    found = idle_accelerator()
    if found:
        yield "PROBLEM", f"this machine has {found} that JAX does not use; install jaxbooth[cuda13] or jaxbooth[tpu]"
    yield "free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB in {Path.cwd()}"
    yield cache_line("compile cache", cache_dir())
    yield cache_line("hub cache", Path(HF_HUB_CACHE))
    yield cache_line("converted models", cache_folder())
