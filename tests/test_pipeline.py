"""Opening runs and models for sampling and export: whose settings count, and what lies beside the weights."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.base.trainable import init_trainable, shard_params, trained_shapes
from jaxbooth.cli.main import main
from jaxbooth.config.load import dump_config
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import first_conflict
from jaxbooth.config.subjects import initializer_token
from jaxbooth.errors import UserError
from jaxbooth.export.export import make_export, write_export
from jaxbooth.export.lora import PEFT_FILE
from jaxbooth.export.metadata import run_metadata
from jaxbooth.models.lora import lora_layers
from jaxbooth.models.low_rank import LORA_A
from jaxbooth.pipeline import Pipeline
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.folder import open_run
from jaxbooth.runs.restore import abstract_run_state, confirm_base, read_base, restore_result
from jaxbooth.storage.lock import locked
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import initial_state
from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.embeddings import read_embeddings, write_embeddings
from jaxbooth.weights.source import Source
from tests.training import configure

SUBJECTS = [
    {"instance_dir": "cats", "instance_prompt": "a photo of <x> cat", "class_prompt": "a photo of cat"},
    {"instance_dir": "apples", "instance_prompt": "a photo of <y>", "class_prompt": "a photo of apple"},
]
NO_FOLDER = {"instance_dir": None, "instance_prompt": None, "class_prompt": None}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, params, mesh):
    """A LoRA run on the embedded model with one checkpoint."""
    root = tmp_path_factory.mktemp("runs") / "cat"
    config = configure((1, 1), lora={"rank": 2}, text={"clip_skip": 1})
    config = config.model_copy(update={"run_dir": root, "data": config.data.model_copy(update={"resolution": 64})})
    base = read_base(config, "float32")
    values = shard_params(init_trainable(base, config, trained_shapes(base, config), params), mesh)
    root.mkdir()
    (root / "config.yaml").write_text(dump_config(config))
    checkpoints = Checkpoints(root / "checkpoints", 1)
    checkpoints.save(
        initial_state(values, make_optimizer(config.train, learning_rates(config)), False, mesh), 7, config
    )
    checkpoints.close()
    return root


def test_in_float32_adapters_are_merged_and_in_bfloat16_they_stay_beside_their_kernels(run_dir, mesh):
    merged = Pipeline.load(run_dir, "float32", mesh)
    beside = Pipeline.load(run_dir, "bfloat16", mesh)
    assert (merged.step, merged.base.text.clip_skip) == (7, 1)
    assert lora_layers(merged.params["unet"]) == []
    assert len(lora_layers(beside.params["unet"])) > 10
    assert beside.params["unet"]["conv_in.kernel"].dtype == jnp.bfloat16


def test_a_run_is_opened_while_another_process_trains_it(run_dir, mesh):
    with locked(run_dir, on_loss=pytest.fail):
        assert Pipeline.load(run_dir, "float32", mesh).step == 7


@pytest.mark.parametrize(
    ("given", "flag"),
    [({"variant": "fp16"}, "--variant"), ({"vae": "other"}, "--vae"), ({"offline": True}, "--offline")],
)
def test_a_run_is_not_opened_with_settings_of_a_model(run_dir, mesh, given, flag):
    with pytest.raises(UserError, match=f"{flag} is about a plain model; .* is a run"):
        Pipeline.load(Source(str(run_dir), **given), mesh=mesh)


def test_a_run_has_its_own_clip_skip(run_dir, mesh):
    with pytest.raises(UserError, match="--clip-skip is about a plain model"):
        Pipeline.load(run_dir, mesh=mesh, clip_skip=2)


def test_metadata_tell_the_exported_step_and_no_local_path(run_dir, mesh, tmp_path):
    run, config = open_run(run_dir)
    config = config.model_copy(update={"model": "/mnt/models/tiny"})
    base = read_base(config.model_copy(update={"model": "demo"}), "float32")
    trained, step = restore_result(run, config, base, mesh)
    metadata = run_metadata(config, trained, step)
    write_export(make_export(base, trained, mesh, tmp_path / "out", "lora", metadata=metadata))
    with safe_open(tmp_path / "out" / PEFT_FILE, "np") as file:
        notes = file.metadata()
    assert (notes["jaxbooth.steps"], notes["jaxbooth.base_model"]) == ("7", "tiny")


def test_a_run_is_not_opened_on_another_base_model(run_dir, base, params, mesh, tmp_path):
    run, config = open_run(shutil.copytree(run_dir, tmp_path / "run"))
    confirm_base(run, base, record=True)
    confirm_base(run, base)
    other = shutil.copytree(DEMO_MODEL, tmp_path / "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    run.config.write_text(dump_config(config.model_copy(update={"model": str(other)})))
    with pytest.raises(UserError, match=r"other is not the base model that .*run was started on"):
        Pipeline.load(run.root, mesh=mesh)


def test_a_file_name_as_out_is_refused(run_dir, base, mesh, tmp_path):
    with pytest.raises(UserError, match="names a file; name a folder"):
        make_export(base, {}, mesh, tmp_path / "cat.safetensors", "single-file")


def test_embeddings_beside_a_model_are_read_with_it(params, mesh, tmp_path):
    folder = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    rows = np.random.default_rng(0).normal(size=(2, 128)).astype(np.float32)
    write_embeddings(folder, {"<sks>": {"text_encoder": rows}}, FAMILIES["sd15"])
    pipeline = Pipeline.load(folder, mesh=mesh)
    text = pipeline.base.text
    assert text.encoders[0].tokenizer.token_ids("a <sks>")[1:] == [2246, 2247]  # after the 2246 of the vocabulary
    np.testing.assert_array_equal(pipeline.params["text_encoder"][PLACEHOLDER_EMBEDDING], rows)


def test_several_tokens_have_a_file_each_and_are_read_back(tmp_path):
    rows = {"<x>": {"text_encoder": np.ones((1, 4), np.float32), "text_encoder_2": np.ones((1, 6), np.float32)}}
    rows["<y>"] = {name: 2 * table for name, table in rows["<x>"].items()}
    write_embeddings(tmp_path, rows, FAMILIES["sdxl"])
    assert len(list(tmp_path.iterdir())) == 2
    found = read_embeddings(tmp_path)
    assert set(found) == {"<x>", "<y>"}
    np.testing.assert_array_equal(found["<y>"]["text_encoder_2"], rows["<y>"]["text_encoder_2"])


def test_each_placeholder_token_starts_from_the_class_of_its_subject():
    text = {"placeholder_tokens": ("<x>", "<y>")}
    config = configure((1, 1), text=text, data=NO_FOLDER | {"subjects": SUBJECTS})
    assert [initializer_token(config.text, config.subjects, token) for token in ("<x>", "<y>")] == ["cat", "apple"]
    config = configure((1, 1), text=text | {"initializer_token": "thing"}, data=NO_FOLDER | {"subjects": SUBJECTS})
    assert initializer_token(config.text, config.subjects, "<y>") == "thing"


def test_the_number_of_steps_is_fixed_where_it_decides_which_belong_to_the_placeholder_tokens():
    text = {"placeholder_tokens": ("<sks>",), "token_training": "pivotal"}
    short, long = (configure((1, 1), text=text, steps=steps) for steps in (10, 40))
    assert first_conflict(short, long) == ("train.steps", 10, 40)
    assert first_conflict(configure((1, 1), steps=10), configure((1, 1), steps=40)) is None


def test_another_model_is_not_looked_for_as_the_configurations_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "sdxl-lora", "--model", str(DEMO_MODEL), "--data.instance-dir", "gone",
              "--data.instance-prompt", "a sks", "--data.class-prompt", "a cat"])  # fmt: skip
    assert "gone is not a folder" in capsys.readouterr().err  # and not: the model has no variant fp16


def test_a_checkpoint_of_adapters_holds_nothing_else(run_dir, mesh):
    _, config = open_run(run_dir)
    names = abstract_run_state(config, read_base(config, "float32"), mesh).params
    assert all(name.endswith((LORA_A, "lora_B.kernel")) for name in names)
