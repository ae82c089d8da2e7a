"""Exports of LoHa and LoKr runs: read back, added to a pipeline in PyTorch, merged, and continued from."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.base.adapters import read_lora_init
from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable, init_trainable, trained_shapes
from jaxbooth.errors import UserError
from jaxbooth.export.model_card import CardContent, model_card
from jaxbooth.export.notes import reader_notes
from jaxbooth.models.lora import merge

from .flow_models import write_pipeline
from .made_up_exports import MadeUpRun, write_models
from .training import configure

LOHA = {"lora": {"rank": 2, "alpha": 3.0, "kind": "loha", "targets": "attention+ff+conv"}}
LOKR = {"lora": {"rank": 1, "alpha": 3.0, "kind": "lokr", "targets": "attention+ff+conv"}}
WIDE = {"lora": LOKR["lora"] | {"factor": 16}}  # more groups than their width
TEXT = {"text_encoder": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    flow = {family: write_pipeline(family, root / family, torch.float32) for family in ("zimage", "klein")}
    return write_models(root) | flow


@pytest.fixture
def export(folders, mesh, tmp_path):
    """Exports a made-up result of a family's small model."""

    def run(family: str, format: str, dtype: str = "base", spread: float = 0.1, **settings) -> MadeUpRun:
        base = BaseModel.read(folders[family], "float32")
        return MadeUpRun(base, mesh, tmp_path / "cat", format, dtype, settings, spread)

    return run


@pytest.mark.parametrize(
    ("family", "kind", "settings", "files"),
    [
        ("sd", "loha", LOHA | TEXT, ["cat_lycoris.safetensors"]),
        ("sdxl", "lokr", LOKR | TEXT, ["cat_lycoris.safetensors"]),
        ("zimage", "lokr", LOKR, ["cat_lycoris.safetensors", "pytorch_lora_weights.safetensors"]),
        ("klein", "lokr", LOKR, ["cat_lycoris.safetensors", "pytorch_lora_weights.safetensors"]),
        ("klein", "loha", LOHA, ["cat_lycoris.safetensors"]),
    ],
)
def test_an_export_is_what_was_trained(export, family, kind, settings, files):
    made = export(family, kind, **settings)
    assert sorted(path.name for path in made.out.iterdir()) == files
    assert made.verify()[0].startswith("verified ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "settings"),
    [("sd", "loha", LOHA | TEXT), ("sdxl", "lokr", LOKR | TEXT), ("zimage", "lokr", LOKR), ("klein", "lokr", LOKR),
     ("klein", "lokr", WIDE), ("klein", "loha", LOHA)],
)  # fmt: skip
def test_pytorch_computes_the_same(export, family, kind, settings):
    made = export(family, kind, **settings)
    assert re.search(r"agrees: a denoising step differs by \de-0[5-9]", made.compare())


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_adapters_are_merged_into_a_whole_model(export, kind):
    made = export("sd", "diffusers", "float32", **{"loha": LOHA, "lokr": LOKR}[kind])
    assert made.verify()[0].startswith("verified ")


def test_who_reads_a_file_is_said(export):
    assert reader_notes(export("sd", "loha", **LOHA).export) == [
        "cat_lycoris.safetensors is for ComfyUI, the web UIs and LyCORIS; diffusers reads no LoHa of this base model, "
        "so give it an export with --format diffusers"
    ]


def test_diffusers_gets_no_lokr_whose_factors_it_cannot_find(export):
    made = export("klein", "lokr", **WIDE)
    assert [path.name for path in made.out.iterdir()] == ["cat_lycoris.safetensors"]
    assert reader_notes(made.export) == [
        "cat_lycoris.safetensors is for ComfyUI; diffusers reads no LoKr with the groups of --lora.factor 16, so give "
        "it an export with --format diffusers, or the LoRA that jaxbooth lora resize makes of the file"
    ]
    card = CardContent("me/cat", "owner/base", made.export.format, "cat", made.base.family, ("a sks cat",))
    assert "load_lora_weights" not in model_card(card)
    assert "load_lora_weights" in model_card(replace(card, files=("pytorch_lora_weights.safetensors",)))
    assert made.verify()[0].startswith("verified ")


def test_a_format_of_another_kind_is_refused(export):
    with pytest.raises(UserError, match="--format lora cannot hold a LoHa, which this run trained; use loha or diff"):
        export("sd", "lora", **LOHA)


# Starting from a file


@pytest.fixture
def file(export) -> Path:
    """A LoKr of SD 1.x with alpha 3."""
    return export("sd", "lokr", **LOKR).out / "cat_lycoris.safetensors"


def start(folders, path, **settings):
    """The base model with adapters, its own UNet, and the trained values before the first step."""
    config = configure((1, 1), lora=LOKR["lora"] | {"init": path} | settings)
    base = add_trainable(BaseModel.read(folders["sd"], "float32"), config)
    shapes = trained_shapes(base, config)
    kernels = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in base.denoiser.shapes.items()}
    return base, kernels, init_trainable(base, config, shapes, {"unet": kernels})["unet"]


@pytest.mark.parametrize("alpha", [3.0, 1.0])
def test_a_run_starts_as_the_model_of_its_file(folders, export, alpha):
    made = export("sd", "lokr", **LOKR)
    base, kernels, found = start(folders, made.out / "cat_lycoris.safetensors", alpha=alpha)
    trained = merge(kernels | made.trained["unet"], made.base.lora)
    started = merge(kernels | jax.tree.map(jnp.asarray, found), base.lora)
    for name, value in trained.items():
        np.testing.assert_allclose(started[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("settings", "message"), [
    ({"kind": "loha"}, "holds a LoKr, and this run trains a LoHa; set --lora.kind lokr"),
    ({"rank": 2}, r"lokr_w2_b .*; set --lora.rank, and of a LoKr --lora.factor, to what the file was trained with"),
    ({"factor": 4}, r"lokr_w1 \(.*; set --lora.rank, and of a LoKr --lora.factor"),
    ({"targets": "attention"}, r"adapter tensor.* does not train.*widen --lora.targets"),
])  # fmt: skip
def test_a_file_of_other_factors_is_refused(folders, file, settings, message):
    config = configure((1, 1), lora=LOKR["lora"] | {"init": file} | settings)
    base = add_trainable(BaseModel.read(folders["sd"], "float32"), config)
    with pytest.raises(UserError, match=message):
        read_lora_init(base, config, trained_shapes(base, config))
