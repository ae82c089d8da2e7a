"""Models that are recognised and refused by name."""

from typing import NamedTuple


class OtherModel(NamedTuple):
    """A model that is recognised and refused.

    Attributes:
        title: as messages name it.
        pipeline: how its class in `model_index.json` begins.
        tensor: expression for how the name of one of its tensors begins in single files, less the denoiser's prefix.
    """

    title: str
    pipeline: str | None = None
    tensor: str | None = None


FLUX1_TENSORS = r"double_blocks\.\d+\.img_mod\.|single_transformer_blocks\.\d+\.proj_mlp\."
OTHER_MODELS = (
    OtherModel("Stable Diffusion 3", "StableDiffusion3", r"joint_blocks\."),
    OtherModel("FLUX.3", "Flux3"),
    OtherModel("FLUX.2 dev", "Flux2Pipeline"),
    OtherModel("an editing or inpainting pipeline of FLUX.2", "Flux2"),
    OtherModel("Chroma", "Chroma", r"distilled_guidance_layer\."),
    OtherModel("FLUX.1", "Flux", FLUX1_TENSORS),
    # which FLUX.1 dev has, too, and klein has not
    OtherModel("FLUX.2 dev", tensor=r"guidance_in\.|time_guidance_embed\.guidance_embedder\."),
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
    OtherModel("Qwen-Image", "QwenImage", r"transformer_blocks\.\d+\.img_mod\.|txt_norm\."),
    OtherModel("Z-Image Omni", "ZImageOmni", r"siglip_(embedder|refiner|pad_token)"),
    OtherModel("Z-Image ControlNet", "ZImageControlNet", r"control_(layers|noise_refiner|all_x_embedder)\."),
    OtherModel("an editing or inpainting pipeline of Z-Image", "ZImage"),
    OtherModel("Hunyuan-DiT", "HunyuanDiT"),
    OtherModel("AuraFlow", "AuraFlow"),
    OtherModel("Lumina", "Lumina", r"layers\.\d+\.adaLN_modulation\.1\."),
    OtherModel("HiDream", "HiDream", r"double_stream_blocks\.|caption_projection\."),
)
