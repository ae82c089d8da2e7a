"""What others call the modules of a base model in a LoRA file, and which tensors are parts of an adapter.

A name with underscores cannot be taken apart (`to_out_0`, `time_emb_proj`), so that names are only ever built, from
the base model's modules; a reader inverts what it built.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import COMPONENTS, FAMILIES, family_of
from jaxbooth.weights.denoiser_file.names import DenoiserFile, projection_order
from jaxbooth.weights.diffusers_read import list_names
from jaxbooth.weights.ldm.names import unet_key
from jaxbooth.weights.lora.lycoris import FACTORS, has_factors, missing_factors
from jaxbooth.weights.names import published_path

LORA_COMPONENTS = tuple(name for name in COMPONENTS if name != "vae")
# Of a transformer's modules, in the files of diffusers, ComfyUI (and ai-toolkit) and PEFT, ...
DOTTED_PREFIXES = ("transformer.", "", "diffusion_model.", "base_model.model.")
UNDERSCORED_PREFIXES = ("lora_unet", "lora_transformer", "lycoris")  # ... kohya, OneTrainer and LyCORIS

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
    r"(?P<down>\.lora_A\.(?:default\.)?weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)down\.weight)|"
    r"(?P<up>\.lora_B\.(?:default\.)?weight|(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)up\.weight)|"
    rf"\.(?P<factor>{FACTORS})|"
    r"(?P<alpha>\.alpha)|(?P<magnitude>\.lora_magnitude_vector(?:\.default)?(?:\.weight)?)|(?P<dora_scale>\.dora_scale))"
)
UNSUPPORTED = {
    r"\.b?oft_": "OFT", r"\.lora_mid\.": "LoCon with Tucker decomposition",
    r"\.lora_B\.bias": "LoRA with biases", r"\.on_input$": "IA3", r"\.diff(_b)?$|\.[wb]_norm$": "full differences",
}  # fmt: skip


class FileModule(NamedTuple):
    """A module as a LoRA file has it.

    Attributes:
        component: of the base model.
        layers: of the component, whose outputs the module has one after another; mostly it is one layer.
        is_swapped: the halves of its outputs lie the other way round.
    """

    component: str
    layers: tuple[str, ...]
    is_swapped: bool = False


def kohya_name(component: str, module: str, config: DenoiserConfig) -> str:
    """Returns the name that kohya's `networks/lora.py` gives a module: diffusers paths, but SGM's in an SDXL UNet."""
    family = family_of(config)
    if component == family.denoiser.component:
        uses_ldm_names = family.denoiser.has_ldm_names and isinstance(config, UNetConfig)
        path = unet_key(module, config) if uses_ldm_names else module
        return underscored(family.denoiser.kohya_prefix, path)
    encoder = next(encoder for encoder in family.text_encoders if encoder.component == component)
    return underscored(encoder.kohya_prefix, published_path(component, module))


def underscored(prefix: str, path: str) -> str:
    """Joins prefix and dotted path with underscores."""
    return f"{prefix}_{path}".replace(".", "_")


def spellings(component: str, module: str, config: DenoiserConfig) -> Iterator[str]:
    """Yields every name by which LoRA files know a module of Stable Diffusion.

    With and without component and `text_model.`, in diffusers' old words and in kohya's.
    """
    paths = list(dict.fromkeys([module, published_path(component, module)]))
    for path in paths:
        old = [match.expand(name) for pattern, name in BEFORE_PEFT if (match := re.fullmatch(pattern, path))]
        for name in (path, *old):
            yield f"{component}.{name}"
            yield name
    if component == family_of(config).denoiser.component and isinstance(config, UNetConfig):
        paths.append(unet_key(module, config))
    yield from (underscored(prefix, path) for prefix in kohya_prefixes(component) for path in paths)


def kohya_prefixes(component: str) -> list[str]:
    """Returns the prefixes that a component's modules have in the files of any family."""
    specs = [spec for family in FAMILIES.values() for spec in (family.denoiser, *family.text_encoders)]
    return list(dict.fromkeys(spec.kohya_prefix for spec in specs if spec.component == component))


def modules_by_name(networks: Mapping[str, ModuleDef], config: DenoiserConfig) -> dict[str, FileModule]:
    """Returns spelling -> module for everything with a kernel; a bare path is the first component's.

    The language model beside a flow transformer is never trained, and has no adapters.
    """
    family = family_of(config)
    if family.denoiser_file:
        component = family.denoiser.component
        return transformer_modules(component, adaptable_layers(networks[component]), family.denoiser_file)
    known: dict[str, FileModule] = {}
    for component in LORA_COMPONENTS:
        for layer in adaptable_layers(networks[component]) if component in networks else []:
            for name in spellings(component, layer, config):
                known.setdefault(name, FileModule(component, (layer,)))
    return known


def adaptable_layers(network: ModuleDef) -> list[str]:
    """Returns the layers that may have an adapter."""
    return [name.removesuffix(".kernel") for name in network.shapes if name.endswith(".kernel")]


def transformer_modules(component: str, layers: list[str], file: DenoiserFile) -> dict[str, FileModule]:
    """Returns spelling -> module: a transformer's layers by diffusers' names and by those of its authors."""
    own = {layer: FileModule(component, (layer,)) for layer in layers}
    modules = authors_modules(component, layers, file) | own
    dotted = {f"{prefix}{path}": module for path, module in modules.items() for prefix in DOTTED_PREFIXES}
    flat = {underscored(prefix, path): module for path, module in modules.items() for prefix in UNDERSCORED_PREFIXES}
    return dotted | flat


def authors_modules(component: str, layers: Iterable[str], file: DenoiserFile) -> dict[str, FileModule]:
    """Returns the layers of a transformer as its authors have them, by their names."""
    layers_of: dict[str, list[str]] = {}
    for layer in sorted(layers, key=projection_order):
        layers_of.setdefault(file.name(layer), []).append(layer)
    return {
        name: FileModule(component, tuple(joined), f"{joined[0]}.weight" in file.swapped)
        for name, joined in layers_of.items()
    }


def group_names(path: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Returns module as the file spells it -> part of its adapter, or factor of its LoHa or LoKr -> tensor name.

    Raises:
        UserError: a tensor is no part of a LoRA, or a module lacks one of its two matrices.
    """
    parts_of: dict[str, dict[str, str]] = {}
    strange = []
    for name in names:
        for pattern, method in UNSUPPORTED.items():
            if re.search(pattern, name):
                raise UserError(
                    f"{path}: {method} is not supported ({name}); jaxbooth reads LoRA, DoRA, LoHa and LoKr."
                )
        match = TENSOR_NAME.fullmatch(name)
        if match:
            parts_of.setdefault(match["module"], {})[match["factor"] or match.lastgroup or ""] = name
        else:
            strange.append(name)
    if not parts_of:
        raise UserError(
            f"{path} is not a LoRA: none of its {len(names)} tensors has a LoRA's name ({list_names(strange)})."
        )
    if strange:
        raise UserError(f"{path}: {len(strange)} of its tensors are no part of a LoRA ({list_names(strange)}).")
    for name, parts in parts_of.items():
        lacking = missing_matrices(parts)
        if lacking:
            raise UserError(f"{path}: {name} has no {' and no '.join(lacking)} matrix; fetch the file again.")
    return parts_of


def missing_matrices(parts: Mapping[str, str]) -> list[str]:
    """Returns what a module lacks, of a LoRA's two matrices or a LoHa's or LoKr's factors."""
    if has_factors(parts):
        return missing_factors(parts)
    return [matrix for part, matrix in (("down", "A (lora_down)"), ("up", "B (lora_up)")) if part not in parts]
