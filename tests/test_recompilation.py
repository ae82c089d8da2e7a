"""What must not cost another compilation: seeds, prompts, guidance, the number of sampling steps, a run's length."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.training.step import make_dispatch
from tests.commands import SHORT, environment, jaxbooth, succeed
from tests.training import setup


@pytest.fixture(scope="module")
def program(micro, micro_params, mesh):
    """Returns a function from settings to the text of the train step, before the compiler."""

    def text(seed=7, **settings):
        made = setup(micro, micro_params, mesh, (2, 2), seed=seed, **settings)
        dispatch = make_dispatch(made.spec, 4, made.state)
        return dispatch.lower(made.state, made.frozen, made.source, made.key, np.int32(1)).as_text()

    return text


def test_another_seed_and_another_length_are_the_same_train_step(program):
    assert program(seed=2**40 + 8, steps=250) == program()


def test_another_weight_of_the_prior_is_another_train_step(program):
    assert program(prior_weight=0.5) != program()


def test_another_guidance_and_another_number_of_steps_are_the_same_sampler(base, params, mesh):
    used = {name: params[name] for name in ("unet", "vae")}
    ids = base.text.tokenize(["", "an emoji of a cat"])
    shapes = jax.eval_shape(base.text.encode, {"text_encoder": params["text_encoder"]}, ids)
    rows, indices = np.zeros(2, np.int32), np.zeros(2, np.uint32)

    def text(steps, guidance):
        image_sampler = ImageSampler(base, mesh, SamplingConfig("dpmpp_2m", steps, guidance, 64), 2)
        return image_sampler.program.lower(used, shapes, rows, indices, image_sampler.inputs(0)).as_text()

    assert text(20, 7.5) == text(50, 4.0)
    assert text(20, 7.5) != text(20, 1.0)  # no guidance, half of the work


def compiled(cache: Path) -> set[str]:
    """Names of the programs in a compilation cache."""
    return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}


@pytest.mark.slow
def test_the_second_run_of_each_command_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_RAISE_PERSISTENT_CACHE_ERRORS", "true")  # a program that cannot be read is compiled again
    assert environment()["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "cache")
    runs = [tmp_path / "first", tmp_path / "second"]

    def use(run, seed, prompt, guidance):
        succeed(jaxbooth("train", *SHORT, "--run-dir", run, "--train.steps", 2 + 2 * seed, "--seed", seed))
        drawn = ("--guidance-scale", guidance, "--seed", seed, "--steps", 1 + seed)
        succeed(jaxbooth("sample", run, "--out", tmp_path / f"images{seed}", "--prompt", prompt, *drawn))

    use(runs[0], 1, "an emoji of a sks cat", 3)
    before = compiled(tmp_path / "cache")
    assert any("run" in name for name in before)
    use(runs[1], 2, "a sks cat in the snow", 4)
    assert compiled(tmp_path / "cache") == before
