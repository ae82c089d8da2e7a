"""Models that are recognised and refused by name."""

from typing import NamedTuple


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
