"""Which files of a Hub repository jaxbooth reads.

Repositories hold the same weights several times: as safetensors and as pickles, in float32 and float16, with and
without EMA, for Flax, ONNX and OpenVINO. One set for each component is chosen.
"""

import re
from collections.abc import Iterable

from jaxbooth.errors import UserError
from jaxbooth.weights.weight_sets import check_variant, choose_weights

# What is read as it is; safety checkers and feature extractors are not.
CONFIGURATIONS = re.compile(
    r"model_index\.json|scheduler/scheduler_config\.json|[\w-]+/config\.json|tokenizer(_\d)?/[\w.-]+\.(json|txt|jinja)"
)
INDEX = "model_index.json"
LISTED = 12  # files and folders that a message names


def check_is_diffusers(files: list[str], label: str) -> None:
    """Refuses a repository that is no diffusers model; the message names a single file in it.

    Raises:
        UserError: it has no `model_index.json`.
    """
    if INDEX in files:
        return
    single = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    hint = f"; to use one file, add its name (/{single[0]})" if single else ""
    raise UserError(
        f"{label} has no model_index.json, so it is no diffusers model; it holds {list_contents(files)}{hint}."
    )


def model_files(
    files: list[str],
    components: Iterable[str],
    variant: str | None,
    allow_pickle: bool,
    label: str,
    without: str | None = None,
) -> list[str]:
    """Returns those files of a diffusers repository that jaxbooth reads.

    Args:
        without: the component whose weights are not needed.

    Raises:
        UserError: a component has no usable weights; the message says what is there.
    """
    check_variant(files, variant, label)
    needed = [name for name in files if CONFIGURATIONS.fullmatch(name) and is_read(name, components)]
    for component in (component for component in components if component != without):
        needed += component_weights(f"{component}/", files, variant, allow_pickle, label)
    return sorted(needed)


def is_read(name: str, components: Iterable[str]) -> bool:
    """Whether a configuration is of a component, the scheduler, a tokenizer or the model as a whole."""
    folder = name.rpartition("/")[0]
    return folder in ("", "scheduler", *components) or folder.startswith("tokenizer")


def vae_files(files: list[str], variant: str | None, allow_pickle: bool, label: str) -> list[str]:
    """Returns the files of a VAE, which is the repository itself or `vae/` in it."""
    prefix = "vae/" if "vae/config.json" in files else ""
    if f"{prefix}config.json" not in files:
        raise UserError(f"{label} has neither config.json nor vae/config.json; it holds {list_contents(files)}.")
    return [f"{prefix}config.json", *component_weights(prefix, files, variant, allow_pickle, label)]


def component_weights(prefix: str, files: list[str], variant: str | None, allow_pickle: bool, label: str) -> list[str]:
    """Returns the weight files of one component.

    Args:
        prefix: its folder and a slash; empty for the repository itself.

    Raises:
        UserError: there are none, or pickles alone and they were not asked for.
    """
    names = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    chosen = choose_weights(names, variant, allow_pickle, f"{label}: {prefix or 'the repository'}")
    if chosen:
        return [prefix + name for name in chosen]
    pickles = choose_weights(names, variant, True, f"{label}: {prefix or 'the repository'}")
    if pickles:
        raise UserError(
            f"{label} has {prefix}{pickles[0]} and no safetensors: a pickle, which can run code when it is opened; "
            "pass --allow-pickle if you trust where it comes from."
        )
    raise UserError(f"{label} has no usable weights in {prefix or 'it'}; it holds {list_contents(files)}.")


def list_contents(files: list[str]) -> str:
    """Returns what is at the top of a repository, for a message."""
    top = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in files} - {".gitattributes", "README.md"})
    more = f" and {len(top) - LISTED} more" if len(top) > LISTED else ""
    return ", ".join(top[:LISTED]) + more if top else "nothing"
