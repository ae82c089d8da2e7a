"""An export is opened in PyTorch diffusers, where a denoising step must come out as jaxbooth computes it."""

import re
import sys

import pytest

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.export.export import FORMATS
from jaxbooth.export.notes import reader_notes
from jaxbooth.export.verify_torch import check_torch
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json

from .made_up_exports import ALONE, DORA, FULL, LORA, WORDS, MadeUpRun, write_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def export(folders, mesh, tmp_path):
    """Exports a made-up result of a family's small model."""

    def run(family: str, format: str, dtype: str = "base", **settings) -> MadeUpRun:
        return MadeUpRun(BaseModel.read(folders[family], "float32"), mesh, tmp_path / "out", format, dtype, settings)

    return run


@pytest.mark.parametrize(
    ("family", "kind", "dtype", "settings"),
    [("sd", "diffusers", "float16", FULL | WORDS), ("sdxl", "diffusers", "float32", LORA),
     ("sd", "single-file", "bfloat16", LORA), ("sdxl", "single-file", "base", DORA),
     ("sd", "lora", "float16", LORA | WORDS), ("sdxl", "lora", "base", DORA | WORDS),
     ("sd", "embeddings", "base", ALONE)],
)  # fmt: skip
def test_pytorch_computes_the_same(export, family, kind, dtype, settings):
    sentence = export(family, kind, dtype, **settings).compare()
    figures = re.fullmatch(
        r"PyTorch diffusers agrees: a denoising step differs by (\S+) of its scale, a prompt by (\S+)", sentence
    )
    assert all(float(figure) < 1e-5 for figure in figures.groups())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("diffusers", FULL | WORDS), ("single-file", LORA | WORDS), ("lora", LORA | WORDS), ("embeddings", ALONE)],
)
def test_new_words_meet_an_end_token_that_old_configurations_name_wrongly(export, kind, settings):
    made = export("sdxl-legacy", kind, "float32", **settings)
    made.verify()
    assert "PyTorch diffusers agrees" in made.compare()
    notes = reader_notes(made.export)
    assert any("pipe.text_encoder_2.text_model.eos_token_id = 2245" in note for note in notes) == (kind != "diffusers")


def test_a_folder_that_still_names_the_wrong_end_token_is_found_without_pytorch(export):
    made = export("sdxl-legacy", "diffusers", "float32", **FULL, **WORDS)
    config = made.out / "text_encoder_2" / "config.json"
    assert made.verify()[1] == "its text_encoder_2 names the end token 2245"
    write_json(config, read_json(config) | {"eos_token_id": 2})
    with pytest.raises(RunFailure, match=r"text_encoder_2.config.json: eos_token_id is 2 and should be 2245"):
        made.verify()
    with pytest.raises(RunFailure, match="PyTorch diffusers disagrees"):
        made.compare()


def test_without_new_words_the_configuration_stays_as_it_was(export, folders):
    made = export("sdxl-legacy", "diffusers", "float32", **LORA)
    for name in ("text_encoder", "text_encoder_2"):
        before, after = (folder / name / "config.json" for folder in (folders["sdxl-legacy"], made.out))
        assert after.read_bytes() == before.read_bytes()
    assert len(made.verify()) == 1


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
        check_torch(FORMATS[kind])
