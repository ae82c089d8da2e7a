"""The model families that jaxbooth trains: one entry of `FAMILIES` holds all that is known of one.

An entry says how its models are recognised (in a folder, in a single file, in a LoRA file), of which components they
are made, what the denoiser is conditioned on, and what the files of other programs call them. Whoever needs to know the
family asks for a property of its entry, and never for its name.

The published configurations of each family ship in `assets/families`, since a file of weights alone does not contain
them, less the paths on their authors' disks and the safety checker.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig, VAEConfig
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.models.flux2 import Flux2Transformer2DModel
from jaxbooth.models.flux2_config import Flux2Config
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.models.vae_config import Flux2VAEConfig
from jaxbooth.models.vae_flux2 import AutoencoderKLFlux2
from jaxbooth.models.zimage import ZImageTransformer2DModel
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.weights.denoiser_file.names import FLUX2, Z_IMAGE
from jaxbooth.weights.family import (
    ChatEncoderSpec,
    Conditioning,
    DenoiserSpec,
    Distillation,
    Family,
    FamilySampling,
    PublishedModel,
    TextEncoderSpec,
    VAESpec,
)
from jaxbooth.weights.other_models import OTHER_MODELS

END_TOKEN = "<|endoftext|>"
UNET = DenoiserSpec("unet", UNetConfig, UNet2DConditionModel, "lora_unet")
KL = VAESpec(VAEConfig, AutoencoderKL)
# By which SD Turbo and SDXL Turbo are told.
TURBO_SCHEDULER = {
    "_class_name": ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    "timestep_spacing": ("trailing",),
    "prediction_type": (None, "epsilon"),
}
SD_TURBO = Distillation("stabilityai/stable-diffusion-2-1", 4, "euler_ancestral", TURBO_SCHEDULER)
SDXL_TURBO = SD_TURBO._replace(base="stabilityai/stable-diffusion-xl-base-1.0")
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="sd15",
            title="SD 1.x",
            published={
                "sd15": (
                    "stable-diffusion-v1-5/stable-diffusion-v1-5",
                    "runwayml/stable-diffusion-v1-5",
                    "CompVis/stable-diffusion-v1-4",
                )
            },
            pipeline="StableDiffusionPipeline",
            pipeline_title="Stable Diffusion 1.x or 2.x",
            denoiser_keys={"addition_embed_type": None, "use_linear_projection": False},
            text_widths=(768,),
            denoiser=UNET,
            vae=KL,
            text_encoders=(
                TextEncoderSpec("text_encoder", "tokenizer", END_TOKEN, False, "cond_stage_model.", "lora_te", None),
            ),
            sampling=FamilySampling(guidance_scale=7.5),
            distilled=SD_TURBO,
            modelspec={"epsilon": "stable-diffusion-v1", "v": "stable-diffusion-v1"},
            kohya_version="sd_v1",
            has_inference_yaml=True,
            hub_tag="stable-diffusion",
        ),
        Family(
            name="sd21",
            title="SD 2.x",
            published={"sd21": ("stabilityai/stable-diffusion-2-1",)},
            pipeline="StableDiffusionPipeline",
            pipeline_title="Stable Diffusion 1.x or 2.x",
            denoiser_keys={"addition_embed_type": None, "use_linear_projection": True},
            text_widths=(1024,),
            denoiser=UNET,
            vae=KL,
            text_encoders=(
                # OpenCLIP pads with id 0
                TextEncoderSpec("text_encoder", "tokenizer", "!", False, "cond_stage_model.", "lora_te", None),
            ),
            sampling=FamilySampling(guidance_scale=7.5),
            distilled=SD_TURBO,
            modelspec={"epsilon": "stable-diffusion-v2-512", "v": "stable-diffusion-v2-768-v"},
            kohya_version="sd_v2",
            has_inference_yaml=True,
            hub_tag="stable-diffusion",
        ),
        Family(
            name="sdxl",
            title="SDXL",
            published={"sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",)},
            pipeline="StableDiffusionXLPipeline",
            pipeline_title="SDXL",
            denoiser_keys={"addition_embed_type": "text_time"},
            text_widths=(2048,),
            denoiser=UNET._replace(has_ldm_names=True),
            vae=KL,
            text_encoders=(
                TextEncoderSpec(
                    "text_encoder", "tokenizer", END_TOKEN, False, "conditioner.embedders.0.", "lora_te1", "clip_l"
                ),
                TextEncoderSpec(
                    "text_encoder_2", "tokenizer_2", "!", True, "conditioner.embedders.1.", "lora_te2", "clip_g"
                ),
            ),
            conditioning=Conditioning(1, has_final_norm=False, has_pooled=True, zeros_for_empty_prompt=True),
            sampling=FamilySampling(guidance_scale=5.0),
            distilled=SDXL_TURBO,
            modelspec={"epsilon": "stable-diffusion-xl-v1-base", "v": "stable-diffusion-xl-v1-base"},
            kohya_version="sdxl_base_v1-0",
            hub_tag="stable-diffusion-xl",
        ),
        Family(
            name="zimage",
            title="Z-Image",
            published={"zimage": ("Tongyi-MAI/Z-Image",)},
            pipeline="ZImagePipeline",
            pipeline_title="Z-Image",
            denoiser_keys={},
            text_widths=(2560,),
            denoiser=DenoiserSpec("transformer", ZImageConfig, ZImageTransformer2DModel, "lora_unet"),
            vae=KL,
            text_encoders=(),
            chat_encoder=ChatEncoderSpec("text_encoder", "tokenizer", (-2,), enable_thinking=True),
            # diffusers' pipeline counts its guidance from 0 and not from 1: this is its 4
            sampling=FamilySampling(guidance_scale=5.0, sampler="euler", prior_sampler="euler"),
            distilled=Distillation("Tongyi-MAI/Z-Image", 9, "euler", {"shift": (3.0,)}),  # its base has 6
            modelspec={"flow": "Z-Image"},
            kohya_version="zimage",
            denoiser_file=Z_IMAGE,
            hub_tag="z-image",
        ),
        Family(
            name="klein",
            title="FLUX.2 klein",
            published={
                "klein-4b": ("black-forest-labs/FLUX.2-klein-base-4B",),
                "klein-9b": ("black-forest-labs/FLUX.2-klein-base-9B",),
            },
            pipeline="Flux2KleinPipeline",
            pipeline_title="FLUX.2 klein",
            denoiser_keys={},
            text_widths=(7680, 12288),
            denoiser=DenoiserSpec("transformer", Flux2Config, Flux2Transformer2DModel, "lora_unet"),
            vae=VAESpec(Flux2VAEConfig, AutoencoderKLFlux2),
            text_encoders=(),
            chat_encoder=ChatEncoderSpec(
                "text_encoder", "tokenizer", (9, 18, 27), enable_thinking=False, pads_to_max_length=True
            ),
            sampling=FamilySampling(guidance_scale=4.0, sampler="euler", prior_sampler="euler", mu_law="empirical"),
            distilled=Distillation("black-forest-labs/FLUX.2-klein-base-4B (or -9B)", 4, "euler", {}),
            modelspec={"flow": "Flux.2-klein"},
            kohya_version="flux2_klein",
            denoiser_file=FLUX2,
            hub_tag="flux-2-klein",
        ),
    )
}
LDM_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.denoiser_file is None)
COMPONENTS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.components))
# Short names and Hub ids of the models whose configurations ship with jaxbooth.
PUBLISHED_NAMES = tuple(name for family in FAMILIES.values() for name in family.published)  # in `assets/families`
PUBLISHED = {
    name: PublishedModel(folder, family)
    for family in FAMILIES.values()
    for folder, repositories in family.published.items()
    for name in (folder, *repositories)
}
PIPELINES = {family.pipeline: family.pipeline_title for family in FAMILIES.values()}


def check_pipeline(model_index: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Returns the components of a diffusers model, by its `model_index.json` alone.

    Raises:
        UserError: the pipeline's class is of no family; the message names the model.
    """
    pipeline = ascii_repr(model_index.get("_class_name")).strip("'")
    for family in FAMILIES.values():
        if family.pipeline == pipeline:
            return family.components
    others = [other.title for other in OTHER_MODELS if other.pipeline and pipeline.startswith(other.pipeline)]
    model = f"{others[0]} ({pipeline})" if others else pipeline
    raise UserError(
        f"{folder / 'model_index.json'}: {model} is not supported; "
        "jaxbooth trains text-to-image models of Stable Diffusion 1.x and 2.x, SDXL, Z-Image and FLUX.2 klein."
    )


def family_of(denoiser: DenoiserConfig) -> Family:
    """Returns the family that a denoiser's configuration belongs to."""
    return next(
        family
        for family in FAMILIES.values()
        if isinstance(denoiser, family.denoiser.config)
        and all(getattr(denoiser, key) == value for key, value in family.denoiser_keys.items())
    )
