"""Which tensors a single-file checkpoint holds for a diffusers folder, and which of the folder's each is made of.

A folder's configurations decide all of it: names and shapes come from the networks that they describe, the kind of a
text encoder from its activation (OpenAI's CLIP uses quick_gelu and keeps its names; OpenCLIP uses gelu), and the
prefixes from whether there is a second text encoder.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.params import abstract_module
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS, Family, family_of
from jaxbooth.weights.ldm.names import UNET_PREFIX, VAE_PREFIX, clip_key, openclip_key, unet_key, vae_key
from jaxbooth.weights.names import torch_name, torch_shape

Shape = tuple[int, ...]
CONFIGS = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig}


@dataclass(frozen=True)
class LdmTensor:
    """One tensor of a single file.

    Attributes:
        name: with its prefix.
        shape: in the single file.
        sources: state-dict names in the folder; several are stacked along the first axis, none is a constant.
        transposed: whether the single file holds the matrix the other way round.
        placeholder: whether readers want it though no folder holds it; it is written and not read back.
    """

    name: str
    shape: Shape
    sources: tuple[str, ...]
    transposed: bool = False
    placeholder: bool = False

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns the single file's tensor from those of `sources`."""
        stacked = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return (stacked.T if self.transposed else stacked).reshape(self.shape)

    def part(self, array: np.ndarray, source: str) -> np.ndarray:
        """Returns one of `sources` from the single file's tensor: the inverse of `join`."""
        rows = np.split(array, len(self.sources))[self.sources.index(source)]
        return (rows.T if self.transposed else rows).reshape(self.source_shape)

    @property
    def source_shape(self) -> Shape:
        """The shape of each of `sources`: 1x1 kernels of the VAE's attention are matrices there."""
        shape = self.shape[::-1] if self.transposed else self.shape
        is_attention = self.name.startswith(VAE_PREFIX) and ".attn_1." in self.name and len(shape) == 4
        return (shape[0] // len(self.sources), *(shape[1:2] if is_attention else shape[1:]))


def components(folder: Path) -> list[str]:
    """Returns the components of a folder that hold weights."""
    return [name for name in COMPONENTS if (folder / name / "config.json").exists()]


def component_config(folder: Path, component: str) -> UNetConfig | VAEConfig | CLIPTextConfig:
    """Reads a component's configuration.

    Raises:
        UserError: it is missing, or of a model that jaxbooth does not support.
    """
    path = folder / component / "config.json"
    return read_config(CONFIGS[component], read_json(path), str(path))


def read_family(folder: Path) -> Family:
    """Returns the family that a folder's model belongs to."""
    denoiser = component_config(folder, "unet")
    assert isinstance(denoiser, UNetConfig)
    return family_of(denoiser)


def is_openclip(config: CLIPTextConfig) -> bool:
    """Whether a text encoder was trained by OpenCLIP and is stored under its names."""
    return config.hidden_act == "gelu"


def layout(folder: Path, component: str) -> list[LdmTensor]:
    """Returns the single file's tensors of one component.

    Raises:
        UserError: the component's configuration is missing or not supported.
    """
    config = component_config(folder, component)
    if isinstance(config, UNetConfig):
        shapes = torch_shapes(config)
        return [LdmTensor(UNET_PREFIX + unet_key(name, config), shape, (name,)) for name, shape in shapes.items()]
    if isinstance(config, VAEConfig):
        return vae_layout(config)
    encoder = next(encoder for encoder in read_family(folder).text_encoders if encoder.component == component)
    return text_encoder_layout(encoder.ldm_prefix, config, encoder.has_projection)


def vae_layout(config: VAEConfig) -> list[LdmTensor]:
    """Returns the tensors of a VAE; its attention's matrices are kernels of 1x1 convolutions."""
    return [
        LdmTensor(
            VAE_PREFIX + vae_key(name, config),
            (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else shape,
            (name,),
        )
        for name, shape in torch_shapes(config).items()
    ]


def text_encoder_layout(stem: str, config: CLIPTextConfig, projected: bool) -> list[LdmTensor]:
    """Returns the tensors of a text encoder."""
    shapes = torch_shapes(config, projected)
    if not is_openclip(config):
        return [LdmTensor(f"{stem}transformer.{clip_key(name)}", shape, (name,)) for name, shape in shapes.items()]
    tensors = []
    for name, shape in shapes.items():
        key = f"{stem}model.{openclip_key(name)}"
        if ".q_proj." in name:
            sources = tuple(name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv")
            tensors.append(LdmTensor(key, (3 * shape[0], *shape[1:]), sources))
        elif name == "text_projection.weight":
            tensors.append(LdmTensor(key, shape[::-1], (name,), transposed=True))
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors.append(LdmTensor(key, shape, (name,)))
    return tensors + placeholders(f"{stem}model.", tensors, config, projected)


def placeholders(stem: str, tensors: list[LdmTensor], config: CLIPTextConfig, projected: bool) -> list[LdmTensor]:
    """Returns what readers of an OpenCLIP text encoder ask for and a diffusers folder lacks.

    SD 2.x conditions on the second last layer, so its folders end there and drop the last one and the projection.
    Web UIs build the whole encoder: they get the last layer twice, as kohya's converter does it, and a projection that
    changes nothing. No image depends on either.
    """
    scale = LdmTensor(f"{stem}logit_scale", (), (), placeholder=True)
    if projected:
        return [scale]
    last = f"{stem}transformer.resblocks.{config.num_hidden_layers - 1}."
    extra = f"{stem}transformer.resblocks.{config.num_hidden_layers}."
    repeated = [
        LdmTensor(tensor.name.replace(last, extra), tensor.shape, tensor.sources, placeholder=True)
        for tensor in tensors
        if tensor.name.startswith(last)
    ]
    width = config.hidden_size
    return [*repeated, LdmTensor(f"{stem}text_projection", (width, width), (), placeholder=True), scale]


@functools.cache  # a model's structure takes seconds to trace, and export asks for it again when it verifies
def torch_shapes(config: UNetConfig | VAEConfig | CLIPTextConfig, projected: bool = False) -> dict[str, Shape]:
    """Returns state-dict name -> shape in PyTorch's layout of the network that a configuration describes."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if isinstance(config, UNetConfig):
            return UNet2DConditionModel(config, Layers(rngs))
        if isinstance(config, VAEConfig):
            return AutoencoderKL(config, Layers(rngs))
        return CLIPTextModel(config, Layers(rngs), projected)

    return {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in abstract_module(build).shapes.items()}
