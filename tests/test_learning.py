"""Every way of training learns: the error on the subject's images falls, and its prompt draws them.

The slow tests run as a user does, through the command line on one device, with the embedded model and subject, and
compare with the untrained model: the pixel distance between drawn images and the nearest training image, and the
error of the predicted noise with fixed noise.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxbooth.assets import DEMO_MODEL, DEMO_SUBJECT
from jaxbooth.training.step import gradients
from tests.commands import jaxbooth, succeed
from tests.learning import denoising_error, distance, draw_creature, graft_sdxl, read_images
from tests.training import run, setup

SKS, WORD, KIND = "an emoji of a sks cat", "an emoji of a <cat>", "an emoji of a cat"
MONSTER = "an emoji of a zwx monster"
QUICK = [
    "--no-export", "--data.num-class-images", 8, "--prior.sampler", "dpmpp_2m", "--prior.steps", 20,
    "--train.checkpoint-every", 1000, "--validation.every", 1000, "--validation.images-per-prompt", 2,
]  # fmt: skip
NEW = ["--text.placeholder-tokens", "<cat>", "--data.instance-prompt", WORD]
NO_PRIOR = ["--train.prior-weight", 0]
LORA, DORA = ["--lora.rank", 8], ["--lora.rank", 8, "--lora.kind", "dora"]


def test_a_lora_lowers_the_loss_of_a_fixed_step(micro, micro_params, mesh):
    lora = {"rank": 8, "targets": "attention+ff+conv"}
    spec, state, frozen, source, key = setup(micro, micro_params, mesh, (4, 2), lora=lora, learning_rate=1e-2, steps=40)
    loss = jax.jit(lambda params: gradients(spec, params, frozen, source, key, jnp.int32(0))[0].terms)
    before = loss(state.params)
    state, _ = run(spec, state, frozen, source, key, [40], max_steps=40)
    after = loss(state.params)
    assert after["instance_loss"] < 0.65 * before["instance_loss"]
    assert after["prior_loss"] < 0.6 * before["prior_loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The module's own folder; class images in it serve several runs."""
    return tmp_path_factory.mktemp("learning")


def train(run_dir: Path, config: str | Path, *flags: object) -> Path:
    """Trains without an export."""
    succeed(jaxbooth("train", config, "--run-dir", run_dir, *QUICK, *flags))
    return run_dir


def draw(source: str | Path, prompt: str, out: Path) -> Path:
    """Draws eight images."""
    flags = ["--prompt", prompt, "--num", 8, "--steps", 20, "--guidance-scale", 4, "--out", out]
    succeed(jaxbooth("sample", source, *flags))
    return out


@pytest.fixture(scope="module")
def untrained(folder) -> Callable[[str], Path]:
    """Returns the folder with the embedded model's images of a prompt."""

    def images(prompt: str) -> Path:
        out = folder / "untrained" / prompt.replace(" ", "-")
        return out if out.is_dir() else draw("demo", prompt, out)

    return images


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "flags", "prompt", "before"), [
    (100, [*LORA], SKS, SKS),
    (100, [*DORA, "--train.text-encoder"], SKS, SKS),
    (160, [*LORA, *NEW, "--text.token-training", "pivotal"], WORD, KIND),
], ids=["lora", "dora-and-text-encoder", "pivotal"])  # fmt: skip
def test_adapters_learn_the_subject(steps, flags, prompt, before, folder, untrained, mesh, tmp_path):
    shared = ["--data.class-dir", folder / "class", "--train.steps", steps]
    trained = train(tmp_path / "run", "demo", *shared, *flags)
    drawn = draw(trained, prompt, tmp_path / "drawn")
    errors = [denoising_error(*model, DEMO_SUBJECT, mesh) for model in ((trained, prompt), (DEMO_MODEL, before))]
    assert distance(drawn, DEMO_SUBJECT) < 0.25 * distance(untrained(before), DEMO_SUBJECT)
    assert errors[0] < 0.75 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 64])
def test_a_lora_of_any_rank_learns_another_subject_at_the_rate_that_nobody_set(rank, folder, untrained, tmp_path):
    creature, kind = draw_creature(tmp_path / "creature"), "an emoji of a monster"
    prompts = ["--data.instance-prompt", MONSTER, "--data.class-prompt", kind, "--data.class-dir", folder / "monsters"]
    trained = train(tmp_path / "run", "demo", "--data.instance-dir", creature, *prompts, "--lora.rank", rank)
    assert distance(draw(trained, MONSTER, tmp_path / "drawn"), creature) < 0.3 * distance(untrained(MONSTER), creature)


@pytest.mark.slow
def test_a_word_alone_comes_nearer_to_the_subject_and_leaves_the_model_as_it_is(folder, untrained, mesh, tmp_path):
    alone = [*NEW, "--text.token-training", "textual-inversion", *NO_PRIOR, "--train.steps", 150]
    trained = train(tmp_path / "run", "demo", *alone)
    drawn = draw(trained, WORD, tmp_path / "drawn")
    errors = [denoising_error(*model, DEMO_SUBJECT, mesh) for model in ((trained, WORD), (DEMO_MODEL, KIND))]
    assert distance(drawn, DEMO_SUBJECT) < 0.85 * distance(untrained(KIND), DEMO_SUBJECT)
    assert errors[0] < 0.985 * errors[1]
    same = draw(trained, KIND, tmp_path / "class")
    np.testing.assert_array_equal(read_images(same), read_images(untrained(KIND)))


@pytest.mark.slow
def test_two_subjects_in_one_run_are_told_apart(folder, untrained, tmp_path):
    creature = draw_creature(tmp_path / "creature")
    subjects = {
        SKS: {"instance_dir": "demo", "class_prompt": KIND, "class_dir": str(folder / "class")},
        MONSTER: {"instance_dir": str(creature), "class_prompt": "an emoji of a monster"},
    }
    base = yaml.safe_load((Path(__file__).parent.parent / "configs" / "demo.yaml").read_text())
    data = {"resolution": 64, "subjects": [{"instance_prompt": prompt} | rest for prompt, rest in subjects.items()]}
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(base | {"data": data}))
    trained = train(tmp_path / "run", config, *LORA, "--train.steps", 250)
    for prompt, own, other in zip(subjects, (DEMO_SUBJECT, creature), (creature, DEMO_SUBJECT), strict=True):
        drawn = draw(trained, prompt, tmp_path / prompt.split()[-1])
        print(distance(drawn, own), distance(untrained(prompt), own), distance(drawn, other))
        assert distance(drawn, own) < 0.35 * distance(untrained(prompt), own)
        assert distance(drawn, own) < 0.35 * distance(drawn, other)


@pytest.mark.slow
def test_a_model_shaped_like_sdxl_learns_the_subject(mesh, tmp_path):
    model = graft_sdxl(tmp_path / "model")
    trained = train(tmp_path / "run", "demo", "--model", model, *LORA, "--train.steps", 100)
    images = [draw(source, SKS, tmp_path / name) for name, source in (("trained", trained), ("untrained", model))]
    after, before = (distance(drawn, DEMO_SUBJECT) for drawn in images)
    errors = [denoising_error(source, SKS, DEMO_SUBJECT, mesh) for source in (trained, model)]
    assert after < 0.3 * before
    assert errors[0] < 0.75 * errors[1]
