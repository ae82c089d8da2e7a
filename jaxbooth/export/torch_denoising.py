"""How each kind of diffusers pipeline encodes a prompt and denoises latents once, in PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.base.model import BaseModel


class DenoisingStep(NamedTuple):
    """What is computed on both sides.

    Attributes:
        latents: (1, h, w, c) float32.
        timesteps: (1,) as the network is told them: int32, or float32 of a flow model.
        time_ids: SDXL's six numbers.
    """

    prompt: str
    latents: np.ndarray
    timesteps: np.ndarray
    time_ids: list[int]


def stable_diffusion_step(pipe: Any, base: BaseModel, step: DenoisingStep) -> tuple[Any, Any]:
    """Returns the prompt embeddings (1, s, d) and the UNet's output (1, c, h, w) of a Stable Diffusion pipeline."""
    import torch

    for encoder in filter(None, (getattr(pipe, name, None) for name in base.text_encoder_names)):
        # diffusers 0.42's `clip_skip` asks for the inner module that transformers 5 took away.
        object.__setattr__(encoder, "text_model", getattr(encoder, "text_model", encoder))
    prompt_embeds, _, *pooled = pipe.encode_prompt(
        prompt=step.prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
        clip_skip=base.text.clip_skip or None,
    )  # fmt: skip
    added = None
    if base.family.conditioning.has_pooled:
        added = {"text_embeds": pooled[0], "time_ids": torch.tensor([step.time_ids], dtype=torch.float32)}
    noisy = torch.from_numpy(step.latents).permute(0, 3, 1, 2)
    output = pipe.unet(
        noisy, torch.tensor(step.timesteps), encoder_hidden_states=prompt_embeds, added_cond_kwargs=added
    ).sample
    return prompt_embeds, output


def z_image_step(pipe: Any, base: BaseModel, step: DenoisingStep) -> tuple[Any, Any]:
    """Returns the same of a Z-Image pipeline, whose transformer takes 1 - s and predicts the velocity's negative."""
    import torch

    prompt_embeds, _ = pipe.encode_prompt(prompt=step.prompt, device="cpu", do_classifier_free_guidance=False)
    noisy = torch.from_numpy(step.latents).permute(0, 3, 1, 2)[:, :, None]  # one frame
    times = (1000 - torch.tensor(step.timesteps)) / 1000
    output = pipe.transformer(list(noisy), times, prompt_embeds, return_dict=False)[0]
    return torch.stack(prompt_embeds), -torch.stack(output)[:, :, 0]


def klein_step(pipe: Any, base: BaseModel, step: DenoisingStep) -> tuple[Any, Any]:
    """Returns the same of a FLUX.2 klein pipeline, whose transformer takes latents as a row of tokens."""
    import torch

    prompt_embeds, text_ids = pipe.encode_prompt(prompt=step.prompt, device="cpu")
    noisy = torch.from_numpy(step.latents).permute(0, 3, 1, 2)
    output = pipe.transformer(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=torch.tensor(step.timesteps) / 1000,
        guidance=None,
        encoder_hidden_states=prompt_embeds,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_ids(noisy),
        return_dict=False,
    )[0]
    return prompt_embeds, output.transpose(1, 2).reshape(noisy.shape)


STEPS: dict[str, Callable[[Any, BaseModel, DenoisingStep], tuple[Any, Any]]] = {
    "StableDiffusionPipeline": stable_diffusion_step,
    "StableDiffusionXLPipeline": stable_diffusion_step,
    "ZImagePipeline": z_image_step,
    "Flux2KleinPipeline": klein_step,
}


def torch_step(pipe: Any, base: BaseModel, step: DenoisingStep) -> tuple[np.ndarray, np.ndarray]:
    """Returns a pipeline's embeddings of a prompt (1, s, d) and its denoiser's output (1, h, w, c)."""
    import torch

    with torch.no_grad():
        prompt_embeds, output = STEPS[base.family.pipeline](pipe, base, step)
    return prompt_embeds.numpy(), output.permute(0, 2, 3, 1).numpy()
