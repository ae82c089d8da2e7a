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
from jaxbooth.console.messages import print_result
from jaxbooth.errors import UserError
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
    """Returns where a tiny convolution ran, how long it took and whether its result is right."""
    began = time.perf_counter()
    image, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    output = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )(image, kernel)
    is_right = bool(jnp.allclose(output, 36.0))
    seconds = time.perf_counter() - began
    return f"{'right' if is_right else 'WRONG'} on {next(iter(output.devices()))}, {seconds:.2f} s with compilation"


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
    """Yields (name, value) of everything that helps to find out why jaxbooth does not run well."""
    from huggingface_hub.constants import HF_HUB_CACHE

    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from ((package, version(package)) for package in PACKAGES)
    yield "backend", jax.default_backend()
    yield "devices", ", ".join(f"{device.id}: {device.device_kind}" for device in jax.devices())
    yield "convolution", convolution_check()
    accelerator = idle_accelerator()
    if accelerator:
        extra = "tpu" if "TPU" in accelerator else "cuda13"
        yield "PROBLEM", f"this machine has {accelerator} that JAX does not use; run pip install 'jaxbooth[{extra}]'"
    yield "free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB in {Path.cwd()}"
    yield cache_line("compile cache", cache_dir())
    yield cache_line("hub cache", Path(HF_HUB_CACHE))
    yield cache_line("converted models", cache_folder())


def doctor_command(argv: list[str]) -> None:
    """Prints what is installed and what JAX runs on."""
    if argv in (["-h"], ["--help"]):
        print("usage: jaxbooth doctor\n\nShow versions, the devices that JAX really uses, free disk, and caches.")
        return
    if argv:
        raise UserError(f"jaxbooth doctor takes no arguments, found {argv[0]}.")
    for name, value in summary():
        print_result(f"{name:<18} {value}")
