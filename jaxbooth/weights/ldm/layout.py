"""Which tensors a single-file checkpoint holds for a diffusers folder, and which of the folder's each is made of.

A folder's configurations decide all of it: names and shapes come from the networks that they describe, the kind of a
text encoder from its activation (OpenAI's CLIP uses quick_gelu and keeps its names; OpenCLIP uses gelu), and the
prefixes from whether there is a second text encoder.
"""

import functools
from pathlib import Path

from flax import nnx

from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.params import abstract_module
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS, family_of
from jaxbooth.weights.family import Family
from jaxbooth.weights.ldm.names import UNET_PREFIX, VAE_PREFIX, clip_key, openclip_key, unet_key, vae_key
from jaxbooth.weights.names import torch_name, torch_shape
from jaxbooth.weights.single_file import Shape, SingleFileTensor

CONFIGS = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig}


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


def layout(folder: Path, component: str) -> list[SingleFileTensor]:
    """Returns the single file's tensors of one component.

    Raises:
        UserError: the component's configuration is missing or not supported.
    """
    config = component_config(folder, component)
    if isinstance(config, UNetConfig):
        shapes = torch_shapes(config)
        return [
            SingleFileTensor(UNET_PREFIX + unet_key(name, config), shape, (name,)) for name, shape in shapes.items()
        ]
    if isinstance(config, VAEConfig):
        return vae_layout(config)
    encoder = next(encoder for encoder in read_family(folder).text_encoders if encoder.component == component)
    return text_encoder_layout(encoder.ldm_prefix, config, encoder.has_projection)


def vae_layout(config: VAEConfig) -> list[SingleFileTensor]:
    """Returns the tensors of a VAE; its attention's matrices are kernels of 1x1 convolutions."""
    return [
        SingleFileTensor(
            VAE_PREFIX + vae_key(name, config),
            (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else shape,
            (name,),
            is_kernel=".attentions." in name and len(shape) == 2,
        )
        for name, shape in torch_shapes(config).items()
    ]


def text_encoder_layout(stem: str, config: CLIPTextConfig, projected: bool) -> list[SingleFileTensor]:
    """Returns the tensors of a text encoder."""
    shapes = torch_shapes(config, projected)
    if not is_openclip(config):
        return [
            SingleFileTensor(f"{stem}transformer.{clip_key(name)}", shape, (name,)) for name, shape in shapes.items()
        ]
    tensors = []
    for name, shape in shapes.items():
        key = f"{stem}model.{openclip_key(name)}"
        if ".q_proj." in name:
            sources = tuple(name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv")
            tensors.append(SingleFileTensor(key, (3 * shape[0], *shape[1:]), sources))
        elif name == "text_projection.weight":
            tensors.append(SingleFileTensor(key, shape[::-1], (name,), is_transposed=True))
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors.append(SingleFileTensor(key, shape, (name,)))
    return tensors + placeholders(f"{stem}model.", tensors, config, projected)


def placeholders(
    stem: str, tensors: list[SingleFileTensor], config: CLIPTextConfig, projected: bool
) -> list[SingleFileTensor]:
    """Returns what readers of an OpenCLIP text encoder ask for and a diffusers folder lacks.

    SD 2.x conditions on the second last layer, so its folders end there and drop the last one and the projection.
    Web UIs build the whole encoder: they get the last layer twice, as kohya's converter does it, and a projection that
    changes nothing. No image depends on either.
    """
    scale = SingleFileTensor(f"{stem}logit_scale", (), (), is_placeholder=True)
    if projected:
        return [scale]
    last = f"{stem}transformer.resblocks.{config.num_hidden_layers - 1}."
    extra = f"{stem}transformer.resblocks.{config.num_hidden_layers}."
    repeated = [
        SingleFileTensor(tensor.name.replace(last, extra), tensor.shape, tensor.sources, is_placeholder=True)
        for tensor in tensors
        if tensor.name.startswith(last)
    ]
    width = config.hidden_size
    return [*repeated, SingleFileTensor(f"{stem}text_projection", (width, width), (), is_placeholder=True), scale]


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
