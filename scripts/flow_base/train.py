"""Trains the base model's transformer and text encoder from scratch: rectified flow on encoded emoji images.

    OMP_NUM_THREADS=1 python scripts/flow_base/train.py DATA RUN --images 450000 --publish PIPELINE

DATA holds what prepare.py, build_tokenizer.py and encode.py wrote. RUN/state.pt is written every five minutes; the same
command goes on from it. PIPELINE is a float16 pipeline of the averaged weights, replaced at the same times.
One core of a recent server CPU (AVX-512 with bfloat16) trains about 65 images a second, so 450,000 images take two
hours, and the first minute or two goes to the compiler (a C++ compiler is needed). Measured with torch 2.13, diffusers
0.42.1 and transformers 5.24.

The recipe:

* Muon for the matrices of blocks and AdamW for the rest; the learning rates are constant for the first half of the
  images and then fall linearly. The rate depends on the number of images alone: to train longer, raise --images before
  half of them have been seen. Afterwards, raise it and accept that the rate rises again, or start anew.
* Representation alignment (Yu et al. 2024, arXiv:2410.06940): after the third layer, a small head has to predict the
  CLIP features of the image without noise. Its weight falls to zero between 30 % and 60 % of the images.
* Noise levels are logit-normal around 0.65, one in five uniform: what is drawn is decided at high levels.
* Animals and faces come more often than objects; cats most often.
* Captions are labels or tags in several forms, with or without style and background; one in ten is empty.

The published weights saw noise levels around 0.5, fewer animals and a constant alignment weight in their first third.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from captions import frequency, random_caption
from encode import VAE_SCALE, VAE_SHIFT
from model import encode_text, new_text_encoder, new_transformer, predict_velocity, rotations, tokenize
from pipeline import save_pipeline
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

MUON_RATE = 2e-3
ADAM_RATE = 1e-3
WARMUP_STEPS = 100
CONSTANT_SHARE = 0.5
FINAL_RATE = 0.01
AVERAGE_DECAY = 0.999
ALIGNMENT_WEIGHT = 0.5
ALIGNMENT_FALL = (0.3, 0.6)
NOISE_MEAN = 0.6  # of the logits
SAVE_SECONDS = 300
PRINT_STEPS = 20


class Batch(NamedTuple):
    """What a step needs."""

    noisy: Tensor
    time: Tensor
    target: Tensor
    ids: Tensor
    mask: Tensor
    features: Tensor


class Dataset:
    """Encoded images and their captions."""

    def __init__(self, data: Path):
        self.rows = json.loads((data / "images.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        encoded = torch.load(data / "latents.pt", mmap=True)
        self.latents = encoded["latents"]
        self.colors = encoded["colors"]
        self.features = torch.load(data / "features.pt", mmap=True)
        self.frequencies = torch.tensor([frequency(row) for row in self.rows])

    def batch(self, size: int) -> Batch:
        """Returns random images, one of the variants of each, with noise."""
        images = torch.multinomial(self.frequencies, size, replacement=True)
        variants = torch.randint(len(self.latents), (size,))
        latents = (self.latents[variants, images].float() - VAE_SHIFT) * VAE_SCALE
        colors = self.colors[variants, images].tolist()
        captions = [
            random_caption(self.rows[image], color) for image, color in zip(images.tolist(), colors, strict=True)
        ]
        ids, mask = tokenize(self.tokenizer, captions)
        sigma = torch.sigmoid(torch.randn(size) + NOISE_MEAN)
        sigma = torch.where(torch.rand(size) < 0.2, torch.rand(size), sigma)
        noise = torch.randn_like(latents)
        level = sigma.view(-1, 1, 1, 1)
        noisy = (1 - level) * latents + level * noise
        return Batch(noisy, 1 - sigma, latents - noise, ids, mask, self.features[variants, images])


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Tells whether Muon trains a parameter."""
    return parameter.ndim == 2 and ("layers" in name or "refiner" in name)


class Training:
    """The networks, their optimizers and their averaged weights."""

    def __init__(self, data: Path, run: Path):
        self.data = data
        self.run = run
        self.transformer = new_transformer()
        self.text_encoder = new_text_encoder(AutoTokenizer.from_pretrained(data / "tokenizer"))
        self.head = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 192))
        self.modules = {"transformer": self.transformer, "text_encoder": self.text_encoder, "head": self.head}
        self.freeze_unused()
        named = [
            (name, parameter)
            for module in self.modules.values()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
        self.parameters = [parameter for _, parameter in named]
        matrices = [parameter for name, parameter in named if is_block_matrix(name, parameter)]
        others = [parameter for name, parameter in named if not is_block_matrix(name, parameter)]
        self.optimizers = {
            "muon": torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        }
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.step = 0
        self.images = 0
        turns = rotations(self.transformer)

        def losses(batch: Batch, alignment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            text = encode_text(self.text_encoder, batch.ids, torch.bfloat16)
            velocity, hidden = predict_velocity(
                self.transformer, turns, batch.noisy, batch.time, text, batch.mask, torch.bfloat16
            )
            error = (velocity - batch.target).square().mean()
            likeness = functional.cosine_similarity(self.head(hidden), batch.features.float(), dim=-1).mean()
            return error + alignment * (1 - likeness), error.detach(), likeness.detach()

        self.losses = torch.compile(losses, fullgraph=True, dynamic=False)

    def freeze_unused(self) -> None:
        """Freezes what the second last hidden states and whole images never see."""
        for parameter in [*self.text_encoder.layers[-1].parameters(), *self.text_encoder.norm.parameters()]:
            parameter.requires_grad_(False)
        self.transformer.x_pad_token.requires_grad_(False)

    def set_rates(self, share: float) -> None:
        """Sets the learning rates for the share of the images that has been seen."""
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS)
        if share > CONSTANT_SHARE:
            rate *= FINAL_RATE + (1 - FINAL_RATE) * (1 - share) / (1 - CONSTANT_SHARE)
        for name, base in (("muon", MUON_RATE), ("adamw", ADAM_RATE)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = base * rate

    @staticmethod
    def alignment_weight(share: float) -> Tensor:
        """Returns the weight of the alignment for the share of the images that has been seen."""
        start, end = ALIGNMENT_FALL
        return torch.tensor(ALIGNMENT_WEIGHT * min(1.0, max(0.0, (end - share) / (end - start))))

    def train_step(self, batch: Batch, micro_batch: int, alignment: Tensor) -> tuple[float, float]:
        """Takes a step; returns the mean squared velocity error and the likeness of the features."""
        size = len(batch.ids)
        sums = torch.zeros(2)
        for start in range(0, size, micro_batch):
            part = Batch(*(value[start : start + micro_batch] for value in batch))
            loss, error, likeness = self.losses(part, alignment)
            (loss * (micro_batch / size)).backward()
            sums += torch.stack([error, likeness]) * (micro_batch / size)
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        self.step += 1
        self.images += size
        decay = min(AVERAGE_DECAY, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return sums[0].item(), sums[1].item()

    def save(self, publish: Path | None) -> None:
        """Writes the state and, if asked for, the pipeline of the averaged weights."""
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state |= {"average": self.average, "step": self.step, "images": self.images}
        staging = self.run / "state.new"
        torch.save(state, staging)
        staging.replace(self.run / "state.pt")
        if publish is None:
            return
        trained = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
            save_pipeline(publish, self.data, self.transformer, self.text_encoder)
            for module in self.modules.values():
                module.float()
            for parameter, value in zip(self.parameters, trained, strict=True):
                parameter.copy_(value)

    def load(self) -> None:
        """Goes on from a saved state, if there is one."""
        path = self.run / "state.pt"
        if not path.exists():
            return
        state = torch.load(path)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.average = state["average"]
        self.step = state["step"]
        self.images = state["images"]
        random.seed(self.step)
        torch.manual_seed(self.step)


def main() -> None:
    """Trains until the images have been seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path, help="folder of the training's state")
    parser.add_argument("--images", type=int, default=450_000, help="images to see in all")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--micro-batch", type=int, default=16, help="images at once: few enough for the CPU's caches")
    parser.add_argument("--publish", type=Path, help="folder of the pipeline to write")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = Dataset(arguments.data)
    training = Training(arguments.data, arguments.run)
    training.load()
    saved = time.monotonic()
    printed = time.monotonic()
    recent: list[tuple[float, float]] = []
    while training.images < arguments.images:
        share = training.images / arguments.images
        training.set_rates(share)
        batch = dataset.batch(arguments.batch_size)
        recent.append(training.train_step(batch, arguments.micro_batch, training.alignment_weight(share)))
        if training.step % PRINT_STEPS == 0:
            now = time.monotonic()
            error, likeness = torch.tensor(recent).mean(0).tolist()
            speed = len(recent) * arguments.batch_size / (now - printed)
            clock = time.strftime("%H:%M:%S")
            print(
                f"{clock} step {training.step} images {training.images} velocity error {error:.4f}"
                f" likeness {likeness:.4f} {speed:.0f} images/s",
                flush=True,
            )
            printed = now
            recent.clear()
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save(arguments.publish)
            saved = time.monotonic()
    training.save(arguments.publish)


if __name__ == "__main__":
    main()
