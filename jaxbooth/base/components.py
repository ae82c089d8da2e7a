"""Which Stable Diffusion a diffusers folder holds, and whether its parts belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from jaxbooth.base.text_encoder import TextEncoder, TextEncoders
from jaxbooth.base.tokenizer import read_tokenizer
from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, architectures, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.params import abstract_module
from jaxbooth.storage.paths import shown
from jaxbooth.storage.text import read_json
from jaxbooth.storage.typed import STRICT, typed


class Family(NamedTuple):
    """What a pipeline class says.

    Attributes:
        name: as in messages.
        text_encoders: folders of its text encoders.
        is_xl: conditions on pooled text and picture sizes too.
    """

    name: str
    text_encoders: tuple[str, ...]
    is_xl: bool


SUPPORTED = {
    "StableDiffusionPipeline": Family("Stable Diffusion 1.x or 2.x", ("text_encoder",), False),
    "StableDiffusionXLPipeline": Family("SDXL", ("text_encoder", "text_encoder_2"), True),
}
RGB = 3  # channels of an image
MAX_NATIVE = 4096  # pixels along a side that a model was trained at; published ones have 512 to 1024
# Pipeline classes of other models, by the start of their names, for messages.
OTHERS = {
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionXLInpaint": "an SDXL inpainting model",
    "StableDiffusionXLImg2Img": "the SDXL refiner",
    "StableDiffusionXLControlNet": "an SDXL ControlNet pipeline",
    "StableDiffusionInpaint": "an inpainting model",
    "StableDiffusionDepth2Img": "a depth model",
    "StableDiffusionInstructPix2Pix": "InstructPix2Pix",
    "StableDiffusionUpscale": "an upscaler",
    "StableCascade": "Stable Cascade",
    "Flux": "FLUX",
    "Kandinsky": "Kandinsky",
    "PixArt": "PixArt",
    "Sana": "Sana",
    "Wuerstchen": "Wuerstchen",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "HunyuanDiT": "Hunyuan-DiT",
    "AuraFlow": "AuraFlow",
    "Lumina": "Lumina",
    "HiDream": "HiDream",
}


@dataclass(frozen=True, config=STRICT)
class ModelIndex:
    """The keys of `model_index.json` that decide something; the others are parts, by library and class."""

    requires_safety_checker: bool | None = None
    force_zeros_for_empty_prompt: bool | None = None


def read_model_index(folder: Path) -> dict[str, Any]:
    """Reads `model_index.json`.

    Raises:
        UserError: it is missing, no JSON object, or a value is of another type.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    typed(ModelIndex, index, str(path))
    for key, value in index.items():
        if isinstance(value, list | dict) and not is_part(value):
            raise UserError(f"{path}: {shown(key)} is {shown(value)}; expected a library and a class.")
    return index


def is_part(value: Any) -> bool:
    """Whether a value names a library and a class, or two nulls."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(part is None or isinstance(part, str) for part in value)


def family_of(index: Mapping[str, Any], folder: Path) -> Family:
    """Returns the family that `model_index.json` names.

    Raises:
        UserError: it is none that jaxbooth trains; the message names it.
    """
    kind = shown(index.get("_class_name")).strip("'")
    if kind in SUPPORTED:
        return SUPPORTED[kind]
    other = next((name for start, name in OTHERS.items() if kind.startswith(start)), None)
    raise UserError(
        f"{folder / 'model_index.json'}: {f'{other} ({kind})' if other else kind} is not supported; "
        "jaxbooth trains Stable Diffusion 1.x, 2.x and SDXL text-to-image models."
    )


def read_component_config(kind: type, folder: Path) -> Any:
    """Reads a component's `config.json` into its typed view."""
    return read_config(kind, read_json(folder / "config.json"), str(folder / "config.json"))


def read_text_encoder(folder: Path, name: str, dtype: Any) -> TextEncoder:
    """Reads one text encoder's configuration and its tokenizer."""
    file = folder / name / "config.json"
    raw = read_json(file)
    config = read_config(CLIPTextConfig, raw, str(file))
    words = folder / name.replace("text_encoder", "tokenizer")
    tokenizer = read_tokenizer(words, config.max_position_embeddings, config.vocab_size)
    # Some first towers were saved with a projection that nothing reads; it is kept, so that they load and export.
    projects = name == "text_encoder_2" or "CLIPTextModelWithProjection" in architectures(raw, str(file))
    network = abstract_module(lambda rngs: CLIPTextModel(config, Layers(rngs, dtype), projection=projects))
    return TextEncoder(name, tokenizer, network, config, len(tokenizer))


def check_components(folder: Path, family: Family, unet: UNetConfig, vae: VAEConfig, text: TextEncoders) -> None:
    """Refuses parts that do not fit each other.

    Raises:
        UserError: the message names the file and what it seems to belong to.
    """
    source = folder / "unet" / "config.json"
    if unet.in_channels != vae.latent_channels:
        kind = {9: "an inpainting model", 5: "a depth model", 8: "an image-editing model", 7: "an upscaler"}
        raise UserError(
            f"{source}: in_channels {unet.in_channels} is not the VAE's {vae.latent_channels}; "
            f"{kind.get(unet.in_channels, 'this model')} cannot be trained."
        )
    check_channels(folder, unet, vae)
    added = unet.addition_embed_type
    if added not in (None, "text_time"):
        raise UserError(f"{source}: addition_embed_type = {shown(added)} is not supported; only SDXL's 'text_time' is.")
    if bool(added) != family.is_xl:
        found = "an SDXL UNet" if added else "not an SDXL UNet"
        raise UserError(
            f"{source} is {found}, but model_index.json says {family.name}; the parts must be of one model."
        )
    if family.is_xl:
        check_pooled(source, unet, text.encoders[-1].config.projection_dim)
    if unet.text_width != text.width:
        raise UserError(
            f"{source}: cross_attention_dim {unet.text_width} does not fit the text encoder's width "
            f"{text.width}; the parts are of different families and must be of one model."
        )
    lengths = [tower.max_length for tower in text.encoders]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{folder}: the text encoders read {' and '.join(map(str, lengths))} tokens (max_position_embeddings, or "
            "the tokenizers' model_max_length); they must read as many."
        )
    deepest = min(tower.config.num_hidden_layers for tower in text.encoders)
    if text.clip_skip >= deepest - family.is_xl:
        raise UserError(f"--text.clip-skip {text.clip_skip} leaves nothing of a text encoder of {deepest} layers.")


def check_channels(folder: Path, unet: UNetConfig, vae: VAEConfig) -> None:
    """Refuses a UNet of other outputs than latents (a learned variance) or of no size, and a VAE of other images.

    Raises:
        UserError: the message names the file and the key.
    """
    if unet.out_channels != unet.in_channels:
        raise UserError(
            f"{folder / 'unet' / 'config.json'}: out_channels {unet.out_channels} is not in_channels "
            f"{unet.in_channels}; jaxbooth trains models that predict one value for each of a latent's."
        )
    side = (unet.sample_size or 0) * vae.factor
    if side > MAX_NATIVE:
        raise UserError(
            f"{folder / 'unet' / 'config.json'}: sample_size {unet.sample_size} means {side} pixels with this VAE; "
            f"at most {MAX_NATIVE} are supported."
        )
    for key in ("in_channels", "out_channels"):
        if getattr(vae, key) != RGB:
            source = folder / "vae" / "config.json"
            raise UserError(f"{source}: {key} {getattr(vae, key)} is not supported; images have {RGB}.")


def check_pooled(source: Path, unet: UNetConfig, projection: int) -> None:
    """Refuses an SDXL UNet that takes something else than the pooled text and six numbers.

    Raises:
        UserError: it is the refiner's, which takes five (size, crop and an aesthetic score), or does not fit.
    """
    number = unet.addition_time_embed_dim or 0
    pooled = (unet.projection_class_embeddings_input_dim or 0) - 6 * number
    if pooled == projection - number:
        raise UserError(f"{source} is the SDXL refiner's, which cannot be trained; use an SDXL base model.")
    if pooled != projection:
        raise UserError(
            f"{source}: projection_class_embeddings_input_dim {unet.projection_class_embeddings_input_dim} does not "
            f"fit text_encoder_2's projection_dim {projection}; the parts must be of one model."
        )
