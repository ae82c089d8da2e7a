"""The configurations of a diffusers folder: which family it is of, and whether its components belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from jaxbooth.base.text_encoder import PromptEncoder, TextEncoder, TextEncoders
from jaxbooth.base.tokenizer import Tokenizer
from jaxbooth.base.tokenizer_files import read_tokenizer
from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import CLIPTextConfig, UNetConfig, architectures, read_config
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.vae import AnyVAEConfig
from jaxbooth.params import abstract_module
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.text import read_json
from jaxbooth.storage.typed import STRICT, validate
from jaxbooth.weights.architectures import FAMILIES, PIPELINES, check_pipeline, family_of
from jaxbooth.weights.family import Distillation, Family, TextEncoderSpec

RGB = 3  # channels of an image
MAX_NATIVE = 4096  # pixels along a side that a model was trained at; published ones have 512 to 1024


@dataclass(frozen=True, config=STRICT)
class ModelIndex:
    """The keys of `model_index.json` that decide something; the others are parts, by library and class."""

    requires_safety_checker: bool | None = None
    force_zeros_for_empty_prompt: bool | None = None
    is_distilled: bool | None = None


def read_model_index(folder: Path) -> dict[str, Any]:
    """Reads `model_index.json`.

    Raises:
        UserError: it is missing, no JSON object, or a value is of another type.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    validate(ModelIndex, index, str(path))
    for key, value in index.items():
        if isinstance(value, list | dict) and not is_part(value):
            raise UserError(f"{path}: {ascii_repr(key)} is {ascii_repr(value)}; expected a library and a class.")
    return index


def is_part(value: Any) -> bool:
    """Whether a value names a library and a class, or two nulls."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(part is None or isinstance(part, str) for part in value)


def read_component_config(config_type: type, folder: Path) -> Any:
    """Reads a component's `config.json` into its typed view."""
    return read_config(config_type, read_json(folder / "config.json"), str(folder / "config.json"))


def read_denoiser_config(folder: Path, model_index: Mapping[str, Any]) -> tuple[Family, DenoiserConfig]:
    """Returns the family that `model_index.json` and the denoiser's configuration agree on, and that configuration.

    Raises:
        UserError: they do not, or it is none that jaxbooth trains; the message names what it is.
    """
    check_pipeline(model_index, folder)
    pipeline = model_index["_class_name"]
    spec = next(family.denoiser for family in FAMILIES.values() if family.pipeline == pipeline)
    source = folder / spec.component / "config.json"
    config = read_component_config(spec.config, source.parent)
    if isinstance(config, UNetConfig):
        check_added_conditions(config, pipeline, source)
    return family_of(config), config


def check_added_conditions(config: UNetConfig, pipeline: str, source: Path) -> None:
    """Refuses a UNet that takes other conditions than the pipeline gives it.

    Raises:
        UserError: the message names the key or the two models.
    """
    added = config.addition_embed_type
    if added not in (None, "text_time"):
        raise UserError(
            f"{source}: addition_embed_type = {ascii_repr(added)} is not supported; only SDXL's 'text_time' is."
        )
    if family_of(config).pipeline != pipeline:
        actual = "an SDXL UNet" if added else "not an SDXL UNet"
        raise UserError(
            f"{source} is {actual}, but model_index.json says {PIPELINES[pipeline]}; the parts must be of one model."
        )


def resolution_multiple(denoiser: DenoiserConfig, vae: AnyVAEConfig) -> int:
    """Returns the pixels that an image's side must be a multiple of: VAE factor x the denoiser's downsampling."""
    return vae.factor * denoiser.downsampling


def native_resolution(denoiser: DenoiserConfig, vae: AnyVAEConfig, is_flow: bool) -> int:
    """Returns the side in pixels that a model was trained at."""
    if is_flow and isinstance(vae.sample_size, int):
        return vae.sample_size
    return denoiser.native_size * vae.factor


def read_text_encoder(folder: Path, spec: TextEncoderSpec, dtype: Any) -> TextEncoder:
    """Reads one text encoder's configuration and its tokenizer.

    Args:
        dtype: that it computes in.
    """
    file = folder / spec.component / "config.json"
    raw = read_json(file)
    config = read_config(CLIPTextConfig, raw, str(file))
    clip = read_tokenizer(folder / spec.tokenizer, config.max_position_embeddings, config.vocab_size)
    # Some models have a projection that nothing reads; it is kept, so that they load and export.
    has_projection = spec.has_projection or "CLIPTextModelWithProjection" in architectures(raw, str(file))
    module = abstract_module(lambda rngs: CLIPTextModel(config, Layers(rngs, dtype), projection=has_projection))
    return TextEncoder(spec.component, Tokenizer(clip, len(clip), config.vocab_size), module, config)


def read_text_encoders(
    folder: Path,
    family: Family,
    model_index: Mapping[str, Any],
    dtype: Any,
    clip_skip: int,
    max_token_chunks: int,
) -> TextEncoders:
    """Reads the CLIP text encoders of a model and how they are used.

    Args:
        dtype: that they compute in.
    """
    encoders = tuple(read_text_encoder(folder, spec, dtype) for spec in family.text_encoders)
    zeros = family.conditioning.zeros_for_empty_prompt
    zeros = zeros and bool(model_index.get("force_zeros_for_empty_prompt", True))  # diffusers' own default
    return TextEncoders(encoders, family.conditioning, zeros, clip_skip=clip_skip, max_token_chunks=max_token_chunks)


def refuse_clip_options(family: Family, clip_skip: int, max_token_chunks: int) -> None:
    """Raises UserError for options that are about CLIP, where the text encoder is a language model."""
    for flag, is_set in (("--text.clip-skip", clip_skip > 0), ("--text.max-token-chunks", max_token_chunks > 1)):
        if is_set:
            raise UserError(f"{flag} is about CLIP; {family.title} has a language model as text encoder. Leave it out.")


def find_distillation(
    family: Family, model_index: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Distillation | None:
    """Returns how a model was distilled, by its `model_index.json` or else its scheduler, or None if it was not."""
    if "is_distilled" in model_index:
        return family.distilled if model_index["is_distilled"] else None
    signs = family.distilled.scheduler_keys
    has_signs = bool(signs) and all(scheduler.get(key) in values for key, values in signs.items())
    return family.distilled if has_signs else None


def check_components(
    folder: Path, family: Family, denoiser: DenoiserConfig, vae: AnyVAEConfig, text: PromptEncoder
) -> None:
    """Refuses components that do not fit each other.

    Raises:
        UserError: the message names the file and what it seems to belong to.
    """
    source = folder / family.denoiser.component / "config.json"
    if denoiser.in_channels != vae.latent_channels:
        models = {9: "an inpainting model", 5: "a depth model", 8: "an image-editing model", 7: "an upscaler"}
        raise UserError(
            f"{source}: in_channels {denoiser.in_channels} is not the VAE's {vae.latent_channels}; "
            f"{models.get(denoiser.in_channels, 'this model')} cannot be trained."
        )
    check_channels(source, denoiser, folder / "vae" / "config.json", vae)
    if isinstance(denoiser, UNetConfig) and family.conditioning.has_pooled:
        check_pooled(source, denoiser, text.encoders[-1].config.projection_dim)
    if denoiser.text_width != text.width:
        raise UserError(
            f"{source}: {denoiser.text_width_key} {denoiser.text_width} does not fit the text encoder's width "
            f"{text.width}; the parts are of different families or sizes and must be of one model."
        )
    if isinstance(text, TextEncoders):
        check_text_encoders(folder, text)


def check_text_encoders(folder: Path, text: TextEncoders) -> None:
    """Refuses CLIP text encoders that read different numbers of tokens, or have no layer that is used.

    Raises:
        UserError: the message names what does not fit.
    """
    lengths = [encoder.tokenizer.max_length for encoder in text.encoders]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{folder}: the text encoders read {' and '.join(map(str, lengths))} tokens (max_position_embeddings, or "
            "the tokenizers' model_max_length); they must read as many."
        )
    layers = min(encoder.config.num_hidden_layers for encoder in text.encoders)
    if text.skipped_layers >= layers:
        raise UserError(f"--text.clip-skip {text.clip_skip} leaves nothing of a text encoder of {layers} layers.")


def check_channels(source: Path, denoiser: DenoiserConfig, vae_source: Path, vae: AnyVAEConfig) -> None:
    """Refuses a denoiser that predicts something else than latents (a learned variance), and a VAE of other images.

    Raises:
        UserError: the message names the file and the key.
    """
    if denoiser.out_channels != denoiser.in_channels:
        raise UserError(
            f"{source}: out_channels {denoiser.out_channels} is not in_channels "
            f"{denoiser.in_channels}; jaxbooth trains models that predict one value for each of a latent's."
        )
    side = (denoiser.sample_size or 0) * vae.factor
    if side > MAX_NATIVE:
        raise UserError(
            f"{source}: sample_size {denoiser.sample_size} means {side} pixels with this VAE; "
            f"at most {MAX_NATIVE} are supported."
        )
    for key in ("in_channels", "out_channels"):
        if getattr(vae, key) != RGB:
            raise UserError(f"{vae_source}: {key} {getattr(vae, key)} is not supported; images have {RGB}.")


def check_pooled(source: Path, denoiser: UNetConfig, projection: int) -> None:
    """Refuses an SDXL UNet that takes something else than the pooled embedding and six time ids.

    Raises:
        UserError: it is the refiner's, which takes five (size, crop and an aesthetic score), or does not fit.
    """
    embedding = denoiser.addition_time_embed_dim or 0  # of one number
    pooled = (denoiser.projection_class_embeddings_input_dim or 0) - 6 * embedding
    if pooled == projection - embedding:
        raise UserError(f"{source} is the SDXL refiner's, which cannot be trained; use an SDXL base model.")
    if pooled != projection:
        raise UserError(
            f"{source}: projection_class_embeddings_input_dim {denoiser.projection_class_embeddings_input_dim} does "
            f"not fit text_encoder_2's projection_dim {projection}; the parts must be of one model."
        )
