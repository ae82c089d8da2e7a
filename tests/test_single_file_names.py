"""Single files of the published models: diffusers' readers find every tensor in its shape, and use every tensor."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    SD_2_TEXT_ENCODER_KEYS_TO_IGNORE,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from jaxbooth.weights.architectures import LDM_FAMILIES, PUBLISHED
from jaxbooth.weights.ldm.write import single_file_shapes
from jaxbooth.weights.names import canonical

OTHERS = {
    "sd15": set(),
    "sd21": {"cond_stage_model.model.logit_scale", *SD_2_TEXT_ENCODER_KEYS_TO_IGNORE},
    "sdxl": {"conditioner.embedders.1.model.logit_scale"},
}  # what belongs to a whole OpenCLIP text encoder, and not to the part of it that a folder has


class Seen(dict):
    """Tensors without memory that note which of them were asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__(tensors)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.seen.add(name)
        return super().pop(name, *default)


def module(folder: Path) -> torch.nn.Module:
    """The module that a component's configuration describes, without memory."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        return getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))


def read(family: str, component: str, single: Seen) -> dict[str, torch.Tensor]:
    """What diffusers makes of a single file for one component."""
    folder, is_xl = PUBLISHED[family].folder / component, family == "sdxl"
    config = json.loads((folder / "config.json").read_text())
    if component == "unet":
        return convert_ldm_unet_checkpoint(single, config)
    if component == "vae":
        return convert_ldm_vae_checkpoint(single, config)
    if component == "text_encoder" and family != "sd21":
        return convert_ldm_clip_checkpoint(
            single, remove_prefix="conditioner.embedders.0.transformer." if is_xl else None
        )
    prefix = "conditioner.embedders.1.model." if is_xl else "cond_stage_model.model."
    return convert_open_clip_checkpoint(module(folder), single, prefix=prefix)


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for stored, value in tensors.items() if (name := canonical(stored))}


@pytest.mark.parametrize("family", LDM_FAMILIES)
def test_diffusers_makes_exactly_the_published_model_of_a_single_file(family):
    names, seen = single_file_shapes(PUBLISHED[family].folder), set()
    assert len(names) == {"sd15": 1130, "sd21": 1228, "sdxl": 2514}[family]
    for folder in sorted(path.parent for path in PUBLISHED[family].folder.glob("*/config.json")):
        single = Seen({name: torch.empty(shape, device="meta") for name, shape in names.items()})
        found = read(family, folder.name, single)
        assert shapes_of(found) == shapes_of(module(folder).state_dict()), folder.name
        seen |= single.seen
    assert set(names) - seen <= OTHERS[family]
