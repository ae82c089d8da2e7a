"""An export is opened in PyTorch diffusers, where a denoising step must come out as jaxbooth computes it."""

import re
import sys

import pytest

from jaxbooth.errors import RunFailure, UserError
from jaxbooth.pipeline import Base
from jaxbooth.verify_torch import check_torch

from .made_up_exports import ALONE, DORA, FULL, LORA, WORDS, Export, write_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def export(folders, mesh, tmp_path):
    """Exports a made-up result of a family's small model."""

    def run(family: str, kind: str, dtype: str = "base", **settings) -> Export:
        return Export(Base.read(folders[family], "float32"), mesh, tmp_path / "out", kind, dtype, settings)

    return run


@pytest.mark.parametrize(
    ("family", "kind", "dtype", "settings"),
    [("sd", "diffusers", "float16", FULL | WORDS), ("sdxl", "diffusers", "float32", LORA),
     ("sd", "single-file", "bfloat16", LORA), ("sdxl", "single-file", "base", DORA),
     ("sd", "lora", "float16", LORA | WORDS), ("sdxl", "lora", "base", DORA | WORDS),
     ("sd", "embeddings", "base", ALONE)],
)  # fmt: skip
def test_pytorch_computes_the_same(export, family, kind, dtype, settings):
    sentence = export(family, kind, dtype, **settings).verify(with_torch=True)[1]
    figures = re.fullmatch(
        r"PyTorch diffusers agrees: a denoising step differs by (\S+) of its scale, a prompt by (\S+)", sentence
    )
    assert all(float(figure) < 1e-5 for figure in figures.groups())


def test_a_model_that_pytorch_computes_otherwise_is_a_failure(export):
    made = export("sd", "diffusers", "float32", **FULL)
    made.trained["unet"]["conv_in.bias"] += 0.1
    with pytest.raises(RunFailure, match=r"disagrees with what was trained: .* a denoising step by \d"):
        made.compare()


def test_a_model_that_pytorch_does_not_open_is_a_failure(export):
    made = export("sd", "diffusers", "float32", **FULL)
    (made.out / "unet" / "config.json").unlink()
    with pytest.raises(RunFailure, match=r"out does not work in PyTorch diffusers: "):
        made.compare()


@pytest.mark.parametrize(("kind", "absent"), [("diffusers", "diffusers"), ("lora", "peft")])
def test_what_is_missing_for_it_is_named_with_how_to_install_it(kind, absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=rf"needs {absent}: pip install 'jaxbooth\[torch\]'"):
        check_torch(kind)
