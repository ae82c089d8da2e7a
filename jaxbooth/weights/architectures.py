"""The model families that jaxbooth trains: one entry of `FAMILIES` holds all that is known of one.

An entry says how its models are recognised (in a folder, in a single file, in a LoRA file), of which components they
are made, what the denoiser is conditioned on, and what the files of other programs call them. Whoever needs to know the
family asks for a property of its entry, and never for its name.

The published configurations of each family ship in `assets/families/<name>`, since a file of weights alone does not
contain them: stable-diffusion-v1-5, stable-diffusion-2-1 (768 px) and stable-diffusion-xl-base-1.0, less the paths on
their authors' disks and the safety checker.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from jaxbooth.assets import ASSETS
from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.storage.paths import ascii_repr

END_TOKEN = "<|endoftext|>"


class DenoiserSpec(NamedTuple):
    """The network that training changes.

    Attributes:
        component: its folder in a diffusers model.
        config: the typed view of its `config.json`.
        module: builds the network from the configuration.
        kohya_prefix: of its modules in kohya's LoRA files.
        has_ldm_names: whether those files name its modules as single files do, and not as diffusers does.
    """

    component: str
    config: type
    module: Callable[[Any, Layers], nnx.Module]
    kohya_prefix: str
    has_ldm_names: bool = False


class TextEncoderSpec(NamedTuple):
    """A CLIP text encoder and its tokenizer.

    Attributes:
        component, tokenizer: their folders in a diffusers model.
        pad_token: fills prompts up to 77 tokens.
        has_projection: whether a pooled embedding is made of its last hidden state.
        ldm_prefix: of its tensors in single files.
        kohya_prefix: of its modules in kohya's LoRA files.
        embedding_key: of its rows in a file of learned embeddings; None: the token itself.
    """

    component: str
    tokenizer: str
    pad_token: str
    has_projection: bool
    ldm_prefix: str
    kohya_prefix: str
    embedding_key: str | None


class Conditioning(NamedTuple):
    """What the denoiser takes besides latents and timesteps.

    Attributes:
        skipped_layers: the text encoders' last layers that the prompt embeddings leave out, before any `clip_skip`.
        has_final_norm: whether the prompt embeddings pass through the text encoder's final LayerNorm.
        has_pooled: whether the last text encoder's pooled embeddings and the image's time ids (its size, crop and
            target size) are conditions too.
        zeros_for_empty_prompt: whether an empty prompt is all zeros, unless `model_index.json` says otherwise.
    """

    skipped_layers: int = 0
    has_final_norm: bool = True
    has_pooled: bool = False
    zeros_for_empty_prompt: bool = False


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: its folder in `assets/families`, and its short name on the command line.
        title: as messages name it.
        repositories: Hub ids whose configurations those in `assets/families` are.
        pipeline: class in `model_index.json`.
        pipeline_title: of all families with that class, as messages name them.
        denoiser_keys: keys of the denoiser's `config.json` that tell the family from others, and their values.
        text_width: of the prompt embeddings of published models, by which files without a configuration are recognised.
        guidance_scale: for sampling, where nothing else is asked for.
        modelspec: "epsilon" and "v" -> architecture (https://github.com/Stability-AI/ModelSpec).
        kohya_version: `ss_base_model_version` in the metadata of kohya's LoRA files.
        has_inference_yaml: whether single files that predict v have a YAML file beside them, which web UIs read; the
            others are marked by an empty tensor.
        hub_tag: of model cards.
    """

    name: str
    title: str
    repositories: tuple[str, ...]
    pipeline: str
    pipeline_title: str
    denoiser_keys: Mapping[str, Any]
    text_width: int
    denoiser: DenoiserSpec
    text_encoders: tuple[TextEncoderSpec, ...]
    conditioning: Conditioning
    guidance_scale: float
    modelspec: Mapping[str, str]
    kohya_version: str
    has_inference_yaml: bool
    hub_tag: str

    @property
    def components(self) -> tuple[str, ...]:
        """Folders of a diffusers model that hold weights."""
        return (self.denoiser.component, "vae", *(encoder.component for encoder in self.text_encoders))

    @property
    def folder(self) -> Path:
        """The folder of the published configurations: a diffusers model without weights and tokenizers."""
        return ASSETS / "families" / self.name


UNET = DenoiserSpec("unet", UNetConfig, UNet2DConditionModel, "lora_unet")
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="sd15",
            title="SD 1.x",
            repositories=(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "runwayml/stable-diffusion-v1-5",
                "CompVis/stable-diffusion-v1-4",
            ),
            pipeline="StableDiffusionPipeline",
            pipeline_title="Stable Diffusion 1.x or 2.x",
            denoiser_keys={"addition_embed_type": None, "use_linear_projection": False},
            text_width=768,
            denoiser=UNET,
            text_encoders=(
                TextEncoderSpec("text_encoder", "tokenizer", END_TOKEN, False, "cond_stage_model.", "lora_te", None),
            ),
            conditioning=Conditioning(),
            guidance_scale=7.5,
            modelspec={"epsilon": "stable-diffusion-v1", "v": "stable-diffusion-v1"},
            kohya_version="sd_v1",
            has_inference_yaml=True,
            hub_tag="stable-diffusion",
        ),
        Family(
            name="sd21",
            title="SD 2.x",
            repositories=("stabilityai/stable-diffusion-2-1",),
            pipeline="StableDiffusionPipeline",
            pipeline_title="Stable Diffusion 1.x or 2.x",
            denoiser_keys={"addition_embed_type": None, "use_linear_projection": True},
            text_width=1024,
            denoiser=UNET,
            text_encoders=(
                # OpenCLIP pads with id 0
                TextEncoderSpec("text_encoder", "tokenizer", "!", False, "cond_stage_model.", "lora_te", None),
            ),
            conditioning=Conditioning(),
            guidance_scale=7.5,
            modelspec={"epsilon": "stable-diffusion-v2-512", "v": "stable-diffusion-v2-768-v"},
            kohya_version="sd_v2",
            has_inference_yaml=True,
            hub_tag="stable-diffusion",
        ),
        Family(
            name="sdxl",
            title="SDXL",
            repositories=("stabilityai/stable-diffusion-xl-base-1.0",),
            pipeline="StableDiffusionXLPipeline",
            pipeline_title="SDXL",
            denoiser_keys={"addition_embed_type": "text_time"},
            text_width=2048,
            denoiser=UNET._replace(has_ldm_names=True),
            text_encoders=(
                TextEncoderSpec(
                    "text_encoder", "tokenizer", END_TOKEN, False, "conditioner.embedders.0.", "lora_te1", "clip_l"
                ),
                TextEncoderSpec(
                    "text_encoder_2", "tokenizer_2", "!", True, "conditioner.embedders.1.", "lora_te2", "clip_g"
                ),
            ),
            conditioning=Conditioning(1, has_final_norm=False, has_pooled=True, zeros_for_empty_prompt=True),
            guidance_scale=5.0,
            modelspec={"epsilon": "stable-diffusion-xl-v1-base", "v": "stable-diffusion-xl-v1-base"},
            kohya_version="sdxl_base_v1-0",
            has_inference_yaml=False,
            hub_tag="stable-diffusion-xl",
        ),
    )
}
COMPONENTS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.components))
# Short names and Hub ids of the models whose configurations ship with jaxbooth.
PUBLISHED = {name: family for family in FAMILIES.values() for name in (family.name, *family.repositories)}
PIPELINES = {family.pipeline: family.pipeline_title for family in FAMILIES.values()}


class OtherModel(NamedTuple):
    """A model that is recognised and refused.

    Attributes:
        title: as messages name it.
        pipeline: how its class in `model_index.json` begins.
        tensor: expression for how one of its tensors is called in single files, less the UNet's prefix.
        lora_module: expression for a module in its LoRA files.
    """

    title: str
    pipeline: str | None = None
    tensor: str | None = None
    lora_module: str | None = None


OTHER_MODELS = (
    OtherModel("Stable Diffusion 3", "StableDiffusion3", r"joint_blocks\.", r"joint_blocks|add_k_proj"),
    OtherModel("FLUX", "Flux", r"double_blocks\.", r"double_blocks|single_(transformer_)?blocks"),
    OtherModel("Stable Cascade", "StableCascade", r"clip_txt_mapper\.|down_blocks\.\d+\.\d+\.channelwise\."),
    OtherModel("PixArt", "PixArt", r"t_block\.1\."),
    OtherModel("Playground v2.5", tensor=r"edm_(mean|std)$"),
    OtherModel("Stable Video Diffusion", tensor=r"(input_blocks|middle_block|output_blocks)\..*\.time_stack\."),
    OtherModel("an SDXL inpainting model", "StableDiffusionXLInpaint"),
    OtherModel("the SDXL refiner", "StableDiffusionXLImg2Img"),
    OtherModel("an SDXL ControlNet pipeline", "StableDiffusionXLControlNet"),
    OtherModel("an inpainting model", "StableDiffusionInpaint"),
    OtherModel("a depth model", "StableDiffusionDepth2Img"),
    OtherModel("InstructPix2Pix", "StableDiffusionInstructPix2Pix"),
    OtherModel("an upscaler", "StableDiffusionUpscale"),
    OtherModel("Kandinsky", "Kandinsky"),
    OtherModel("Sana", "Sana"),
    OtherModel("Wuerstchen", "Wuerstchen"),
    OtherModel("Qwen-Image", "QwenImage"),
    OtherModel("Z-Image", "ZImage"),
    OtherModel("Hunyuan-DiT", "HunyuanDiT"),
    OtherModel("AuraFlow", "AuraFlow"),
    OtherModel("Lumina", "Lumina"),
    OtherModel("HiDream", "HiDream"),
)


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
        "jaxbooth trains Stable Diffusion 1.x, 2.x and SDXL text-to-image models."
    )


def family_of(denoiser: UNetConfig) -> Family:
    """Returns the family that a denoiser's configuration belongs to."""
    return next(
        family
        for family in FAMILIES.values()
        if isinstance(denoiser, family.denoiser.config)
        and all(getattr(denoiser, key) == value for key, value in family.denoiser_keys.items())
    )
