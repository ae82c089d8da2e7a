"""Runs on a quantized base: the same on any mesh, for many subjects at once, resumed, sampled and exported."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxbooth.assets import DEMO_MODEL, DEMO_SUBJECT
from jaxbooth.config.run_config import Config, first_conflict
from jaxbooth.models.quantization import QUANTIZATIONS, quantized_kernels
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.sharding import make_mesh
from tests.commands import jaxbooth, succeed, train
from tests.quantized import quantize_params
from tests.training import run, setup

KINDS = QUANTIZATIONS[1:]
# As in test_meshes.py, of a LoRA.
SETTINGS = {"eps": 1e-3, "learning_rate": 1e-2, "lora": {"rank": 4, "targets": "attention+ff+conv"}}


def trained(base, params, mesh, **settings):
    """Returns the metrics of three steps and the adapters after them."""
    made = setup(base, params, mesh, (8, 8), **SETTINGS, **settings)
    assert not [name for name in made.state.params if name.endswith("kernel_scale")]
    state, metrics = run(*made, [3])
    return metrics, jax.device_get(state.params)


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_training_beside_a_quantized_unet_does_not_depend_on_the_mesh(kind, micro, micro_params, mesh):
    params = micro_params | {"unet": quantize_params(micro.denoiser, micro_params["unet"], kind)}
    expected, adapters = trained(micro, params, mesh)
    found, shared = trained(micro, params, make_mesh(2, 2, 2))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    moved = max(np.abs(value).max() for name, value in adapters.items() if name.endswith("lora_B.kernel"))
    assert moved > 1e-3
    for name, value in adapters.items():
        np.testing.assert_allclose(shared[name], value, rtol=1e-5, atol=1e-3 * moved, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["zimage", "klein"])
@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_transformers_do_not_depend_on_the_mesh(kind, family, flow_model, mesh, monkeypatch):
    monkeypatch.setattr("jaxbooth.models.quantization.MIN_SIZE", 512)
    base, params = flow_model(family)
    assert quantized_kernels(base.denoiser.shapes, kind)
    params = params | {base.denoiser_name: quantize_params(base.denoiser, params[base.denoiser_name], kind)}
    settings = SETTINGS | {"lora": {"rank": 4, "targets": "attention+ff"}}
    runs = [run(*setup(base, params, where, (8, 8), **settings), [3])[1] for where in (mesh, make_mesh(2, 2, 2))]
    np.testing.assert_allclose(runs[1]["loss"], runs[0]["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["blocks", "dots"])
def test_recomputing_blocks_changes_no_result(remat, micro, micro_params, mesh):
    params = micro_params | {"unet": quantize_params(micro.denoiser, micro_params["unet"], "int8")}
    expected, _ = trained(micro, params, mesh)
    found, _ = trained(micro, params, mesh, remat=remat)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)


def test_a_run_does_not_change_what_its_base_is_held_in():
    old = Config.model_validate({"model_quantization": "int8", "lora": {"rank": 4}})
    new = Config.model_validate({"model_quantization": "nf4", "lora": {"rank": 4}})
    assert first_conflict(old, new) == ("model_quantization", "int8", "nf4")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_is_resumed_exactly_sampled_and_exported_for_the_ordinary_base(kind, tmp_path):
    flags = ["--model-quantization", kind, "--lora.rank", 4]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    output = succeed(train(whole, *flags))
    assert f"kernels in {kind}" in output
    shutil.copytree(whole, resumed)  # as it was after step 3
    shutil.rmtree(resumed / "checkpoints" / "6")
    shutil.rmtree(resumed / "export")
    assert "resumed at step 3 of 6" in succeed(train(resumed, *flags))
    losses = [[line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (whole, resumed)]
    assert losses[0] == losses[1]
    name = "export/pytorch_lora_weights.safetensors"
    expected, found = load_file(whole / name), load_file(resumed / name)
    assert all(np.array_equal(found[key], value) for key, value in expected.items())
    sample = ["--prompt", "an emoji of a sks cat", "--steps", 2, "--num", 1, "--out"]
    succeed(jaxbooth("sample", whole, *sample, tmp_path / "samples"))
    succeed(jaxbooth("sample", DEMO_MODEL, "--model-quantization", kind, *sample, tmp_path / "base"))
    succeed(jaxbooth("export", whole, "--format", "diffusers", "--out", tmp_path / "merged"))
    refused = train(whole, "--lora.rank", 4)
    assert refused.returncode
    assert "model-quantization" in refused.stderr


@pytest.mark.slow
def test_many_subjects_share_a_quantized_base(tmp_path):
    manifest = tmp_path / "subjects.yaml"
    entry = "- {{name: {0}, instance_dir: {1}, instance_prompt: an emoji of a {0} cat}}\n"
    manifest.write_text("".join(entry.format(name, DEMO_SUBJECT) for name in ("sks", "zwx")))
    output = succeed(
        jaxbooth(
            "train-many", manifest, "demo", "--run-dir", tmp_path / "runs", "--model-quantization", "int8",
            "--lora.rank", 4, "--train.steps", 2, "--train.batch-size", 1, "--prior.method", "none",
            "--validation.steps", 2, "--validation.images-per-prompt", 1,
        )
    )  # fmt: skip
    assert "kernels in int8" in output


@pytest.mark.slow
def test_class_images_of_the_full_weights_are_those_of_a_run_without_quantization(tmp_path):
    flags = ["--lora.rank", 4]
    succeed(train(tmp_path / "plain", *flags, steps=1))
    succeed(train(tmp_path / "full", *flags, "--model-quantization", "nf4", "--prior.full-precision", steps=1))
    succeed(train(tmp_path / "nf4", *flags, "--model-quantization", "nf4", steps=1))
    images = {
        name: [path.read_bytes()[-5000:] for path in sorted((tmp_path / name / "prior").glob("*.png"))]
        for name in ("plain", "full", "nf4")
    }
    assert images["full"] == images["plain"]
    assert images["nf4"] != images["plain"]
    # Those of the full weights are no others than those of a run without quantization, which may use them.
    reuse = ["--data.class-dir", tmp_path / "full" / "prior"]
    succeed(train(tmp_path / "again", *flags, *reuse, steps=1))
    refused = train(tmp_path / "refused", *flags, *reuse, "--model-quantization", "nf4", steps=1)
    assert refused.returncode == 2
    assert "model_quantization = 'none', but the run asks for 'nf4'; set --prior.full-precision" in refused.stderr
