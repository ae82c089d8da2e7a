"""The step of diffusers' `train_dreambooth.py` in PyTorch, on random weights: AdamW, clipping, bfloat16 autocast.

With `--vae` as the script has it by default: images are encoded, and prompts too, in every step. Without, latents and
text features are there already, which the script cannot do.
"""

import argparse
import resource
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch_model import conditions, read_config, resolution_of, tokens_of
from transformers import CLIPTextConfig, CLIPTextModel
from worker import Subject, serve, timed


class Step:
    """A model, its optimizer, and a batch."""

    def __init__(self, arguments: argparse.Namespace):
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        folder, self.device = arguments.folder, arguments.device
        self.rows, self.with_vae = 2 * arguments.rows, arguments.vae
        unet = UNet2DConditionModel.from_config(read_config(folder, "unet"))
        self.unet = unet.to(self.device, memory_format=torch.channels_last)
        self.trained = list(self.unet.parameters())
        if arguments.lora_rank:
            self.adapt(arguments.lora_rank)
        if arguments.remat != "none":
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-6, weight_decay=1e-2, fused=arguments.fused or None)
        self.schedule = DDPMScheduler.from_config(read_config(folder, "scheduler"))
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        side = resolution_of(folder)
        self.latents = torch.randn(self.rows, 4, side // 8, side // 8, device=self.device)
        self.text, self.added = conditions(self.unet, self.rows, tokens_of(folder), side, self.device, self.dtype)
        if self.with_vae:
            self.prepare_encoders(folder, side)
        self.model = torch.compile(self.unet) if arguments.compile else self.unet

    def adapt(self, rank: int) -> None:
        """Trains adapters on the attention projections instead, as `train_dreambooth_lora*.py` does."""
        from peft import LoraConfig

        self.unet.requires_grad_(False).to(torch.bfloat16)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()

    def prepare_encoders(self, folder: str, side: int) -> None:
        """Builds what the script runs in every step beside the UNet."""
        vae = AutoencoderKL.from_config(read_config(folder, "vae"))
        self.vae = vae.to(self.device, self.dtype).requires_grad_(False)
        config = CLIPTextConfig(**read_config(folder, "text_encoder"))
        self.text_encoder = CLIPTextModel(config).to(self.device, self.dtype).requires_grad_(False)
        self.pixels = torch.rand(self.rows, 3, side, side, device=self.device, dtype=self.dtype) * 2 - 1
        length = config.max_position_embeddings
        self.ids = torch.randint(0, config.vocab_size, (self.rows, length), device=self.device)

    def step(self) -> torch.Tensor:
        """One update."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            latents, text = self.latents, self.text
            if self.with_vae:
                latents = self.vae.encode(self.pixels).latent_dist.sample() * self.vae.config.scaling_factor
                text = self.text_encoder(self.ids)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, len(self.schedule.betas), (self.rows,), device=self.device)
            noisy = self.schedule.add_noise(latents, noise, timesteps)
            output = self.model(noisy, timesteps, text, added_cond_kwargs=self.added, return_dict=False)[0]
            instance, prior = output.float().chunk(2)
            instance_noise, prior_noise = noise.float().chunk(2)
            loss = F.mse_loss(instance, instance_noise) + F.mse_loss(prior, prior_noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, steps: int) -> float:
        """Runs steps; the loss is fetched once, which favours this peer: the script fetches it in every step."""

        def work() -> None:
            for _ in range(steps):
                loss = self.step()
            assert torch.isfinite(loss).item()

        return timed(work)

    def peak_bytes(self) -> int:
        """Returns the most memory that tensors took."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def build(arguments: argparse.Namespace) -> Subject:
    """Prepares the step."""
    import diffusers

    step = Step(arguments)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    facts: dict[str, Any] = {"device": name, "rows": step.rows}
    facts["versions"] = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return Subject(step.run, facts, step.peak_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="a diffusers folder; no weights needed")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused", action="store_true", help="AdamW as one kernel")
    parser.add_argument("--remat", default="none", help="any policy but none means gradient checkpointing")
    parser.add_argument("--lora-rank", type=int, default=None)
    given = parser.parse_args()
    serve(lambda: build(given))
