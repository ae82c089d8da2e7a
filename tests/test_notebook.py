"""The notebook for Colab and Kaggle: it runs from photos to a LoRA file, here with the demo model on one CPU device."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from safetensors.numpy import load_file

from jaxbooth.assets import DEMO_SUBJECT
from tests.commands import environment

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "dreambooth.ipynb"
# As small as training, sampling and exporting can be.
SETTINGS = f"""
CONFIG = "demo"
PHOTOS = {str(DEMO_SUBJECT)!r}
INSTANCE_PROMPT = "an emoji of a sks cat"
CLASS_PROMPT = "an emoji of a cat"
SAMPLE_PROMPT = "an emoji of a sks cat with a hat"
STEPS = 2
RANK = 2
FLAGS = ["--data.num-class-images", "1", "--prior.steps", "1", "--prior.sample-batch-size", "1",
         "--data.resolution", "32", "--validation.steps", "1", "--validation.images-per-prompt", "1",
         "--validation.prompts", "a cat",
         "--train.steps-per-dispatch", "2", "--lora.targets", "attention"]
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_it_runs_from_photos_to_a_lora_file_that_opens(notebook, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    [place] = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SETTINGS))

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()

    adapters = load_file(tmp_path / "dreambooth-lora" / "pytorch_lora_weights.safetensors")
    assert {array.shape[0] for name, array in adapters.items() if name.endswith("lora_A.weight")} == {2}
    assert (tmp_path / "dreambooth-lora" / "dreambooth-lora_kohya.safetensors").is_file()
    images = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(images) == 3
