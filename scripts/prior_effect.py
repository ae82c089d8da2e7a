"""What the prior term does, in numbers and images: the demo trained with it and without it.

    python scripts/prior_effect.py --out runs/prior-effect
    python scripts/prior_effect.py --model demo-flow --out runs/prior-effect-flow

Trains twice (about a minute each on 2 CPU cores, reusing one set of class images), draws the subject and the class
with the base model and with both runs from the same seeds, and prints a Markdown table:

* subject distance: how far images of the subject prompt are from the nearest training image (lower: learned);
* leakage distance: the same for images of the class prompt (lower: the class has turned into the subject);
* class drift: mean squared distance in latent space between class images and the base model's of the same seed.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxbooth import Pipeline, load_config, train
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.image_grid import image_grid
from jaxbooth.data.images import scan_folder
from jaxbooth.models.vae import scale_latents

SHOWN = 4


def draw(source: str | Path, prompt: str, num: int) -> np.ndarray:
    """Returns (num, H, W, 3) float images in [0, 1]."""
    images = Pipeline.load(source).sample(prompt, num, seed=1000, steps=20, guidance_scale=4.0)
    return np.stack([np.asarray(image) for image in images]) / 255.0


def nearest(images: np.ndarray, references: np.ndarray) -> float:
    """Median over images of the mean squared pixel distance to the nearest reference."""
    distances = np.square(images[:, None] - references[None]).mean(axis=(2, 3, 4))
    return float(np.median(distances.min(axis=1)))


def latents(model: str, images: np.ndarray) -> np.ndarray:
    """Encodes images with the model's VAE; scaled posterior means."""
    pipeline = Pipeline.load(model)
    base = pipeline.base
    encode = jax.jit(lambda params, pixels: base.vae.bind(params).encode(pixels).mean)
    found = encode(pipeline.params["vae"], (images * 2 - 1).astype(np.float32))
    return scale_latents(base.vae_config, np.asarray(found))


def runs(model: str, out: Path, steps: int) -> dict[str, Path]:
    """Trains with and without the prior term."""
    base = load_config(model)
    found = {}
    for name, weight in (("prior on", 1.0), ("prior off", 0.0)):
        config: Config = base.model_copy(
            update={
                "run_dir": out / name.replace(" ", "-"),
                "data": base.data.model_copy(update={"class_dir": out / "class" if weight else None}),
                "prior": base.prior.model_copy(update={"weight": weight}),
                "train": base.train.model_copy(update={"steps": steps}),
            }
        )
        train(config)
        found[name] = config.run_dir
    return found


def main() -> None:
    """Trains, draws, prints the table and saves the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "demo-flow"), default="demo")
    parser.add_argument("--out", type=Path, default=Path("runs/prior-effect"))
    parser.add_argument("--num", type=int, default=32, help="images of each prompt")
    parser.add_argument("--steps", type=int, default=250, help="training steps")
    arguments = parser.parse_args()
    config = resolve_paths(load_config(arguments.model))
    subject, kind = config.data.instance_prompt, config.data.class_prompt or ""
    assert config.data.instance_dir
    images = scan_folder(config.data.instance_dir, subject, "instance").images
    framing = CropSpec(64, 64, 0, False, 0)
    references = np.concatenate([seen.pixels for seen in load_augmentations(images, framing)]) / 255.0

    sources = {"base model": arguments.model} | runs(arguments.model, arguments.out, arguments.steps)
    drawn = {
        name: (draw(path, subject, arguments.num), draw(path, kind, arguments.num)) for name, path in sources.items()
    }
    base_latents = latents(arguments.model, drawn["base model"][1])
    print(f"| {arguments.num} images each | subject distance | leakage distance | class drift (latent MSE) |")
    print("|---|---|---|---|")
    for name, (subjects, classes) in drawn.items():
        drift = float(np.square(latents(arguments.model, classes) - base_latents).mean())
        print(f"| {name} | {nearest(subjects, references):.4f} | {nearest(classes, references):.4f} | {drift:.3f} |")

    tiles, labels = [], []
    for name, both in drawn.items():
        for prompt, group in zip((subject, kind), both, strict=True):
            tiles += list((group[:SHOWN] * 255).astype(np.uint8))
            labels += [f"{name}: {prompt}"] * SHOWN
    image: Image.Image = image_grid(tiles, labels, columns=2 * SHOWN)
    image.save(arguments.out / "grid.png")
    print(f"\n{arguments.out / 'grid.png'}")


if __name__ == "__main__":
    main()
