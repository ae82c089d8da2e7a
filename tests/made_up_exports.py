"""Small models of both kinds, and runs on them with made-up results, exported."""

import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.trainable import add_trainable, shard_params, trained_shapes
from jaxbooth.export.export import make_export, write_export
from jaxbooth.export.format import Export
from jaxbooth.export.metadata import run_metadata
from jaxbooth.export.verify import verify_export
from jaxbooth.export.verify_torch import compare_with_torch
from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.clip import LEGACY_EOS
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json

from .training import configure

FULL = {"text_encoder": True}
LORA = {"text_encoder": True, "lora": {"rank": 4, "alpha": 2.0, "targets": "attention+ff+conv"}}
DORA = {"lora": {"rank": 3, "alpha": 5.0, "kind": "dora", "rslora": True}}
WORDS = {"text": {"placeholder_tokens": ("<sks>", "<toy>"), "vectors_per_token": 2}}
ALONE = {"text": {"placeholder_tokens": ("<sks>",), "vectors_per_token": 2, "token_training": "textual-inversion"}}

CLIP = {"vocab_size": 2246, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 32, "eos_token_id": 2245, "bos_token_id": 2244, "pad_token_id": 2245}  # fmt: skip
LEVELS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
         "projection_class_embeddings_input_dim": 24 + 6 * 8}  # fmt: skip


def encoder(kind: type, **config) -> torch.nn.Module:
    return kind(transformers.CLIPTextConfig(**CLIP, **config))


def write_models(root: Path) -> dict[str, Path]:
    """Writes random models with two small levels, as diffusers saves them: SD 1.x in float16 and SDXL in float32.

    The text encoders of `sdxl-legacy` name 2 as their end token, as those of the published SDXL do.
    """
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, sample_size=16)
    read, clip = transformers.CLIPTokenizer.from_pretrained, transformers.CLIPTextModel
    words = read(DEMO_MODEL / "tokenizer")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    unet = diffusers.UNet2DConditionModel(**LEVELS, cross_attention_dim=32, attention_head_dim=2)
    sd = diffusers.StableDiffusionPipeline(
        vae, encoder(clip, hidden_size=32), words, unet, scheduler, None, None, requires_safety_checker=False
    )
    unet = diffusers.UNet2DConditionModel(
        **LEVELS, **ADDED, cross_attention_dim=32 + 48, attention_head_dim=(2, 4), use_linear_projection=True
    )
    first = encoder(clip, hidden_size=32)
    second = encoder(transformers.CLIPTextModelWithProjection, hidden_size=48, projection_dim=24, hidden_act="gelu")
    xl = diffusers.StableDiffusionXLPipeline(vae, first, second, words, read(DEMO_MODEL / "tokenizer"), unet, scheduler)
    xl.save_pretrained(root / "sdxl")
    sd.to(torch.float16).save_pretrained(root / "sd")
    shutil.copytree(root / "sdxl", root / "sdxl-legacy")
    for name in ("text_encoder", "text_encoder_2"):
        config = root / "sdxl-legacy" / name / "config.json"
        write_json(config, read_json(config) | {"eos_token_id": LEGACY_EOS})
    return {name: root / name for name in ("sd", "sdxl", "sdxl-legacy")}


class MadeUpRun:
    """A run's made-up result, exported into `out`."""

    def __init__(self, base: BaseModel, mesh, out: Path, format: str, dtype: str, settings: dict, spread: float = 0.03):
        self.spread = spread
        self.config = configure((1, 1), **settings)
        self.base, self.mesh = add_trainable(base, self.config), mesh
        self.trained = shard_params(self.made_up(), mesh)
        self.export = self.write(out, format, dtype)

    def write(self, out: Path, format: str, dtype: str) -> Export:
        metadata = run_metadata(self.config, self.trained, self.config.train.steps)
        export = make_export(self.base, self.trained, self.mesh, out, format, dtype, metadata)
        write_export(export)
        return export

    def made_up(self) -> dict[str, dict[str, np.ndarray]]:
        """Values as training might have left them: parameters moved by `spread`, adapters and embeddings as large."""
        draw, found = np.random.default_rng(0), {}
        whole = load_params(self.base, self.mesh, self.base.components)
        for component, shapes in trained_shapes(self.base, self.config).items():
            for name, leaf in shapes.items():
                start = whole[component].get(name, float(name.endswith(MAGNITUDE)))
                found.setdefault(component, {})[name] = np.asarray(start) + self.spread * draw.normal(size=leaf.shape)
        return found

    @property
    def out(self) -> Path:
        return self.export.out

    def verify(self) -> list[str]:
        return verify_export(self.export)

    def compare(self) -> str:
        return compare_with_torch(self.export, self.config.subjects[0].instance_prompt)
