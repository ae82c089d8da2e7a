"""Fixtures of the command-line tests: a subject, a model to damage, a trained run, and refusals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.cli.main import main
from jaxbooth.config.load import dump_config
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import TrainConfig
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import initial_state


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths, such as the default run folder's, lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dog(tmp_path) -> Path:
    """A folder with two images."""
    folder = tmp_path / "dog"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model, to be damaged."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mesh) -> Path:
    """A run folder with one checkpoint, of weights that are still the base model's."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    folder.mkdir()
    config = Config(run_dir=folder, train=TrainConfig(optimizer="lion"))
    (folder / "config.yaml").write_text(dump_config(config))
    unet = load_params(BaseModel.read(DEMO_MODEL), mesh, ("unet",), ("unet",))
    checkpoints = Checkpoints(folder / "checkpoints", 1)
    checkpoints.save(initial_state(unet, make_optimizer(config.train, learning_rates(config)), False, mesh), 1, config)
    checkpoints.close()
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that must end with one sentence on stderr, and returns that sentence."""

    def run(*argv: str | Path, code: int = 2) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in argv])
        error = capsys.readouterr().err
        assert stop.value.code == code, error
        assert error.startswith("error: ")
        assert error.endswith(".\n")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").strip()

    return run
