"""Exported LoRAs of flow transformers: their files are read back, and diffusers computes what jaxbooth does."""

import numpy as np
import pytest

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable, trained_shapes
from jaxbooth.config.run_config import Config
from jaxbooth.export.export import make_export, write_export
from jaxbooth.export.verify import verify_export
from jaxbooth.export.verify_torch import compare_with_torch
from tests.flow_models import FLOW_FAMILIES, write_pipeline


@pytest.fixture(scope="module", params=FLOW_FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return write_pipeline(family, tmp_path_factory.mktemp(family) / "model")


def adapted_base(folder, **lora):
    """The base model with a LoRA, and random adapters."""
    config = Config.model_validate({"lora": {"rank": 4, "alpha": 2} | lora, "data": {"instance_dir": "cats"}})
    base, rng = add_trainable(BaseModel.read(folder, "float32"), config), np.random.default_rng(0)
    trained = {
        component: {name: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32) for name, leaf in leaves.items()}
        for component, leaves in trained_shapes(base, config).items()
    }
    return base, trained


@pytest.mark.parametrize("changes", [{"targets": "attention+ff", "rslora": True}, {"kind": "dora"}], ids=str)
def test_an_export_is_verified_by_its_files_and_by_diffusers(changes, folder, mesh, tmp_path):
    base, trained = adapted_base(folder, **changes)
    export = make_export(base, trained, mesh, tmp_path / "cat", "lora")
    write_export(export)
    assert "verified" in verify_export(export)[0]
    assert "PyTorch diffusers agrees" in compare_with_torch(export, "a sks cat")
