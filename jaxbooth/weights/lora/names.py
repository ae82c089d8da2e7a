"""What others call the modules of Stable Diffusion in a LoRA file, and what kohya's readers find in the file's head.

A name with underscores cannot be taken apart (`to_out_0`, `time_emb_proj`), so that names are only ever built, from
the base model's modules; a reader inverts what it built.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import COMPONENTS, FAMILIES, family_of
from jaxbooth.weights.diffusers_read import list_names
from jaxbooth.weights.family import Family, TextEncoderSpec
from jaxbooth.weights.ldm.names import unet_key
from jaxbooth.weights.names import published_path
from jaxbooth.weights.other_models import OTHER_MODELS

LORA_COMPONENTS = tuple(name for name in COMPONENTS if name != "vae")
TEXT_READER = re.compile(r"attn2[._](processor\.)?to_[kv]$")

# diffusers before 0.22 (`attn1.processor.to_q_lora`, and `self_attn.to_q_lora` in text encoders)
BEFORE_PEFT = (
    (r"(.*)\.(to_[qkv])", r"\1.processor.\2"),
    (r"(.*)\.to_out\.0", r"\1.processor.to_out"),
    (r"(.*)\.([qkv])_proj", r"\1.to_\2"),
    (r"(.*)\.out_proj", r"\1.to_out"),
)
# A tensor's name: a module, then which part of its adapter it is, in PEFT's, kohya's and diffusers' old words.
TENSOR_NAME = re.compile(
    r"(?P<module>.+?)(?:"
    r"(?P<down>\.lora_A\.weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)down\.weight)|"
    r"(?P<up>\.lora_B\.weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)up\.weight)|"
    r"(?P<alpha>\.alpha)|(?P<magnitude>\.lora_magnitude_vector(?:\.weight)?)|(?P<dora_scale>\.dora_scale))"
)
UNSUPPORTED = {
    r"\.hada_": "LoHa", r"\.lokr_": "LoKr", r"\.b?oft_": "OFT", r"\.lora_mid\.": "LoCon with Tucker decomposition",
    r"\.lora_B\.bias": "LoRA with biases", r"\.on_input$": "IA3", r"\.diff(_b)?$|\.[wb]_norm$": "full differences",
}  # fmt: skip


def kohya_name(component: str, module: str, config: UNetConfig) -> str:
    """Returns the name that kohya's `networks/lora.py` gives a module: diffusers paths, but SGM's in an SDXL UNet."""
    family = family_of(config)
    if component == family.denoiser.component:
        path = unet_key(module, config) if family.denoiser.has_ldm_names else module
        return underscored(family.denoiser.kohya_prefix, path)
    encoder = next(encoder for encoder in family.text_encoders if encoder.component == component)
    return underscored(encoder.kohya_prefix, published_path(component, module))


def underscored(prefix: str, path: str) -> str:
    """Joins prefix and dotted path with underscores."""
    return f"{prefix}_{path}".replace(".", "_")


def spellings(component: str, module: str, config: UNetConfig) -> Iterator[str]:
    """Yields every name by which LoRA files know a module: with and without component and `text_model.`, old, kohya."""
    paths = list(dict.fromkeys([module, published_path(component, module)]))
    for path in paths:
        old = [match.expand(name) for pattern, name in BEFORE_PEFT if (match := re.fullmatch(pattern, path))]
        for name in (path, *old):
            yield f"{component}.{name}"
            yield name
    if component == family_of(config).denoiser.component:
        paths.append(unet_key(module, config))
    yield from (underscored(prefix, path) for prefix in kohya_prefixes(component) for path in paths)


def kohya_prefixes(component: str) -> list[str]:
    """Returns the prefixes that a component's modules have in the files of any family."""
    specs = [spec for family in FAMILIES.values() for spec in (family.denoiser, *family.text_encoders)]
    return list(dict.fromkeys(spec.kohya_prefix for spec in specs if spec.component == component))


def modules_by_name(networks: Mapping[str, ModuleDef], config: UNetConfig) -> dict[str, tuple[str, str]]:
    """Returns spelling -> (component, module) for every module with a kernel; a bare path is the first component's."""
    known: dict[str, tuple[str, str]] = {}
    for component in LORA_COMPONENTS:
        shapes = networks[component].shapes if component in networks else {}
        for module in (name.removesuffix(".kernel") for name in shapes if name.endswith(".kernel")):
            for name in spellings(component, module, config):
                known.setdefault(name, (component, module))
    return known


def group_names(path: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Returns module as the file spells it -> part of its adapter -> tensor name.

    Raises:
        UserError: a tensor is no part of a LoRA, or a module lacks one of its two matrices.
    """
    parts_of: dict[str, dict[str, str]] = {}
    strange = []
    for name in names:
        for pattern, method in UNSUPPORTED.items():
            if re.search(pattern, name):
                raise UserError(f"{path}: {method} is not supported ({name}); jaxbooth reads LoRA and DoRA.")
        match = TENSOR_NAME.fullmatch(name)
        if match:
            parts_of.setdefault(match["module"], {})[match.lastgroup or ""] = name
        else:
            strange.append(name)
    if not parts_of:
        raise UserError(
            f"{path} is not a LoRA: none of its {len(names)} tensors has a LoRA's name ({list_names(strange)})."
        )
    if strange:
        raise UserError(f"{path}: {len(strange)} of its tensors are no part of a LoRA ({list_names(strange)}).")
    for name, parts in parts_of.items():
        lacking = [matrix for part, matrix in (("down", "A (lora_down)"), ("up", "B (lora_up)")) if part not in parts]
        if lacking:
            raise UserError(f"{path}: {name} has no {' and no '.join(lacking)} matrix; fetch the file again.")
    return parts_of


def suggest_family(modules: Mapping[str, tuple[int, ...]]) -> str:
    """Returns what to add to a message about a LoRA that does not fit: which family it looks made for.

    Args:
        modules: name in the file -> shape of its down matrix, (rank, in, ...).
    """
    for other in OTHER_MODELS:
        if other.lora_module and any(re.search(other.lora_module, name) for name in modules):
            return f"; it looks like a LoRA for {other.title}"
    widths = {shape[1] for name, shape in modules.items() if TEXT_READER.search(name) and len(shape) > 1}
    for family in reversed(FAMILIES.values()):
        if widths.intersection(family.text_widths) or any(name.startswith(name_prefixes(family)) for name in modules):
            return f"; it looks like a LoRA for {family.title}"
    return "; it was made for another base model"


def name_prefixes(family: Family) -> tuple[str, ...]:
    """Returns the beginnings of names in LoRA files that belong to this family alone; none may be."""
    others = [encoder for other in FAMILIES.values() if other is not family for encoder in other.text_encoders]
    shared = {prefix for encoder in others for prefix in lora_prefixes(encoder)}
    prefixes = [prefix for encoder in family.text_encoders for prefix in lora_prefixes(encoder)]
    return tuple(prefix for prefix in prefixes if prefix not in shared)


def lora_prefixes(encoder: TextEncoderSpec) -> tuple[str, str]:
    """Returns how the names of a text encoder's modules begin, in PEFT's and in kohya's files."""
    return f"{encoder.component}.", f"{encoder.kohya_prefix}_"


def kohya_metadata(config: UNetConfig, ranks: Iterable[int], alpha: float, is_dora: bool) -> dict[str, str]:
    """Returns the keys by which kohya's tools and the web UIs tell what a file is; all values are text.

    The module that reads DoRA is LyCORIS; kohya's own `networks.lora` knows none.
    """
    family, dims = family_of(config), set(ranks)
    prediction = "v" if (config.sample_size or 0) > 64 else "epsilon"  # of the published models of SD 2.x
    return {
        "ss_network_module": "lycoris.kohya" if is_dora else "networks.lora",
        "ss_network_dim": str(*dims) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": family.kohya_version,
        "ss_v2": str(family.name == "sd21"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec[prediction]}/lora",
    }
