"""What the learning tests learn and measure with: a second subject, an SDXL-shaped model, two distances."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.images import scan_folder
from jaxbooth.models.vae import scale_latents
from jaxbooth.pipeline import Pipeline
from jaxbooth.storage.files import write_json
from jaxbooth.training.layout import example_keys
from tests.small_models import CLASSES, OPENCLIP, UNETS, weights, write_weights

SIDE = 64
UNET_FILE, TEXT_FILE = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
DEVIATION = 17.0  # of the embedded text encoder's last hidden states, about
SECOND = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "projection_dim": 16}


def draw_creature(folder: Path) -> Path:
    """Draws four images of a square purple creature with yellow stripes; mouth and eyes differ."""
    folder.mkdir(parents=True)
    for index in range(4):
        image = Image.new("RGB", (4 * SIDE, 4 * SIDE), "white")
        draw = ImageDraw.Draw(image)
        draw.rectangle((40, 40, 216, 216), (110, 40, 170))
        for top in (60, 176):
            draw.rectangle((40, top, 216, top + 18), (250, 210, 60))
        for left in (74, 146):
            draw.ellipse((left, 92, left + 36, 128), "white")
            draw.ellipse((left + 4 + 6 * index, 102, left + 18 + 6 * index, 116), "black")
        draw.rectangle((90, 146, 166, 152 + 5 * index), (40, 10, 60))
        image.save(folder / f"{index}.png")
    return folder


def read_images(folder: Path) -> np.ndarray:
    """Returns a folder's images as the training sees them, (n, SIDE, SIDE, 3) in [0, 1]."""
    images = scan_folder(folder, "x", "folder").images
    return (
        np.concatenate([seen.pixels for seen in load_augmentations(images, CropSpec(SIDE, SIDE, 0, False, 0))]) / 255.0
    )


def distance(drawn: Path, subject: Path) -> float:
    """Median over the drawn images of the mean squared pixel distance to the nearest image of the subject."""
    images, references = read_images(drawn), read_images(subject)
    distances = np.square(images[:, None] - references[None]).mean(axis=(2, 3, 4))
    return float(np.median(distances.min(axis=1)))


def denoising_error(source: Path, prompt: str, subject: Path, mesh: Mesh, draws: int = 4) -> float:
    """Mean squared error of a model's predicted noise on a subject's images, each with the same noise every time.

    Args:
        source: run or model folder.
        draws: noised versions of each image, at timesteps spread over the schedule.
    """
    pipeline = Pipeline.load(source, mesh=mesh)
    base, pixels = pipeline.base, read_images(subject).astype(np.float32)
    latents = base.vae.bind(pipeline.params["vae"]).encode(jnp.asarray(2 * pixels - 1)).mean
    latents = jnp.repeat(scale_latents(base.vae_config, latents), draws, axis=0)
    keys = example_keys(jax.random.key(0), jnp.int32(0), np.arange(len(latents)))
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    timesteps = jnp.tile(jnp.linspace(100, 900, draws).astype(jnp.int32), len(pixels))
    sizes = jnp.tile(jnp.array([SIDE, SIDE, 0, 0, SIDE, SIDE], jnp.float32), (len(latents), 1))
    ids = base.text.tokenize([prompt] * len(latents))
    return float(noise_error(base)(pipeline.params, ids, latents, noise, timesteps, sizes))


def noise_error(base: BaseModel) -> Callable[..., jax.Array]:
    """Returns the compiled mean squared error of the UNet's output against the noise."""

    @jax.jit
    def error(params, ids, latents, noise, timesteps, sizes):
        conditions = base.denoiser_conditioning(base.text.encode(params, ids), sizes)
        noisy = base.schedule.add_noise(latents, noise, timesteps)
        return jnp.mean(jnp.square(base.denoiser.bind(params["unet"])(noisy, timesteps, *conditions) - noise))

    return error


def graft_sdxl(folder: Path) -> Path:
    """Writes an SDXL-shaped model that draws nearly what the embedded one does.

    SDXL reads the penultimate hidden state without its final LayerNorm. The first encoder is the embedded model's
    and one more layer, so that its last state is the penultimate one; the LayerNorm's scale and shift go into the
    UNet's cross attention (and an average of what it divides by). The second is random and read with zeros.
    """
    for name in ("vae", "scheduler", "tokenizer"):
        shutil.copytree(DEMO_MODEL / name, folder / name)
    shutil.copytree(DEMO_MODEL / "tokenizer", folder / "tokenizer_2")
    text = graft_towers(folder)
    graft_unet(folder, text)
    parts = {name: value for name, value in CLASSES.items() if (folder / name).is_dir()}
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False, **parts}
    write_json(folder / "model_index.json", index)
    return folder


def graft_towers(folder: Path) -> dict[str, np.ndarray]:
    """Writes both text encoders; returns the first one's weights."""
    config = json.loads((DEMO_MODEL / "text_encoder" / "config.json").read_text())
    count = config["num_hidden_layers"]
    text = load_file(DEMO_MODEL / TEXT_FILE)
    layer = f"encoder.layers.{count - 1}."
    more = {name.replace(layer, f"encoder.layers.{count}."): value for name, value in text.items() if layer in name}
    write_json(folder / "text_encoder" / "config.json", config | {"num_hidden_layers": count + 1})
    save_file(text | more, folder / TEXT_FILE, metadata={"format": "pt"})
    second = OPENCLIP | SECOND | {key: config[key] for key in ("vocab_size", "eos_token_id", "max_position_embeddings")}
    write_json(folder / "text_encoder_2" / "config.json", second)
    write_weights(folder, "text_encoder_2", "float32")
    small = {name: 0.1 * value for name, value in weights(folder, "text_encoder_2").items()}
    save_file(small, folder / "text_encoder_2" / "model.safetensors", metadata={"format": "pt"})
    return {name: value.astype(np.float32) for name, value in text.items()}


def graft_unet(folder: Path, text: dict[str, np.ndarray]) -> None:
    """Writes the embedded UNet with room for the second text encoder and for SDXL's added conditions."""
    config = json.loads((DEMO_MODEL / "unet" / "config.json").read_text())
    added = {key: UNETS["sdxl"][key] for key in ("addition_embed_type", "addition_time_embed_dim")}
    numbers = SECOND["projection_dim"] + 6 * added["addition_time_embed_dim"]
    added |= {"projection_class_embeddings_input_dim": numbers}
    width = config["cross_attention_dim"] + SECOND["hidden_size"]
    write_json(folder / "unet" / "config.json", config | added | {"cross_attention_dim": width})
    unet = {name: value.astype(np.float32) for name, value in load_file(DEMO_MODEL / UNET_FILE).items()}
    scale, shift = (text[f"text_model.final_layer_norm.{part}"] for part in ("weight", "bias"))
    for name in [name for name in unet if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        kernel = unet[name]
        if name.endswith("to_v.weight"):  # what is added to all values alike passes through the attention
            out = name.replace("to_v", "to_out.0")
            unet[out.replace("weight", "bias")] += unet[out] @ (kernel @ shift)
        centred = kernel * scale - (kernel * scale).mean(axis=1, keepdims=True)
        unet[name] = np.pad(centred / DEVIATION, ((0, 0), (0, SECOND["hidden_size"])))
    hidden = 4 * config["block_out_channels"][0]
    draw = np.random.default_rng(0)
    unet |= {
        "add_embedding.linear_1.weight": draw.normal(size=(hidden, numbers)) / numbers**0.5,
        "add_embedding.linear_1.bias": np.zeros(hidden),
        "add_embedding.linear_2.weight": np.zeros((hidden, hidden)),
        "add_embedding.linear_2.bias": np.zeros(hidden),
    }
    file = {name: np.ascontiguousarray(value, np.float32) for name, value in unet.items()}
    save_file(file, folder / UNET_FILE, metadata={"format": "pt"})
