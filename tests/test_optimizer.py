"""Update rules against their references: what decays, how a warmup starts, what is kept in less than float32."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.trainable import add_trainable, trained_shapes, unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.params import flatten_components
from jaxbooth.runs.start_notes import learning_rate_jump
from jaxbooth.training.optimizer import averaged_params, learning_rate_schedule, make_optimizer
from jaxbooth.weights.names import canonical, import_axes, parameter_names

from .torch_pipelines import KINDS, in_torch, write_pipeline
from .training import configure

STEPS, RATE = 20, 1e-2


def after_some_steps(optimizer, mu_dtype, rng):
    """Parameters and optimizer state of a least-squares problem whose gradients stay of one size."""
    train = {"optimizer": optimizer, "mu_dtype": mu_dtype, "learning_rate": RATE, "weight_decay": 0.0}
    config = Config.model_validate({"train": train})
    tx = make_optimizer(config.train, learning_rates(config))
    target = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    params = {"unet.kernel": jnp.zeros((16, 8))}
    state = tx.init(params)
    for _ in range(STEPS):
        grads = jax.grad(lambda p: jnp.sum(jnp.square(p["unet.kernel"] - target)))(params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params["unet.kernel"], state


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_first_moment_in_bfloat16_is_kept_so_and_moves_the_weights_alike(optimizer):
    exact, _ = after_some_steps(optimizer, "float32", np.random.default_rng(0))
    rounded, state = after_some_steps(optimizer, "bfloat16", np.random.default_rng(0))
    kept = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (16, 8)}
    assert jnp.dtype("bfloat16") in kept
    moved = float(jnp.linalg.norm(exact))
    assert moved > 10 * RATE
    # A rounded moment is off by 2^-9 of itself; lion takes its sign alone, which then differs in a weight or two.
    assert float(jnp.linalg.norm(rounded - exact)) < 0.02 * moved


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.9), ("lion", 0.99)])
def test_a_first_moment_in_bfloat16_decays_as_one_in_float32(optimizer, decay, rng):
    train = {"optimizer": optimizer, "mu_dtype": "bfloat16", "learning_rate": RATE}
    config = Config.model_validate({"train": train})
    tx = make_optimizer(config.train, learning_rates(config))
    params = {"unet.kernel": jnp.ones((64, 64))}
    before = jnp.asarray(rng.uniform(1, 2, (64, 64)), jnp.bfloat16)
    state = jax.tree.map(lambda leaf: before if leaf.dtype == before.dtype else leaf, tx.init(params))
    _, state = jax.jit(tx.update)({"unet.kernel": jnp.zeros((64, 64))}, state, params)
    (after,) = (leaf for leaf in jax.tree.leaves(state) if leaf.dtype == before.dtype)
    # Each is rounded to 2^-9 of itself; the decay rounded to bfloat16 would be off by as much, for all of them alike.
    assert np.mean(np.float32(after) / np.float32(before)) == pytest.approx(decay, abs=2e-4)


def config_of(**train) -> Config:
    own = {"learning_rate": RATE, "steps": STEPS, "weight_decay": 0.1, "max_grad_norm": 0.0}
    return Config.model_validate({"train": own | train})


def descend(config: Config, params: dict, gradient, no_gradient=(), steps: int = STEPS) -> tuple[dict, object]:
    """Parameters and optimizer state after some steps along `gradient(params, step)`."""
    tx = make_optimizer(config.train, learning_rates(config), no_gradient)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradient(params, step), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def nothing(params: dict, step: int) -> dict:
    return jax.tree.map(jnp.zeros_like, params)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion"])
def test_decay_follows_the_learning_rate(optimizer, schedule):
    config = config_of(optimizer=optimizer, lr_scheduler=schedule, warmup_steps=5)
    found, _ = descend(config, {"unet.kernel": jnp.ones((4, 3))}, nothing)
    rate = learning_rate_schedule(config.train, learning_rates(config))
    expected = np.prod([1 - 0.1 * float(rate(step)) for step in range(STEPS)])
    np.testing.assert_allclose(found["unet.kernel"], expected, rtol=1e-6)
    assert expected < 1 - 0.1 * RATE * 5


@pytest.mark.parametrize(
    ("schedule", "done", "longer", "message"),
    [("linear", 20, 40, 
      "from 0.0005 to 0.005: --train.lr-scheduler linear now falls until step 40, and so far until 20"),
     ("cosine", 20, 40, 
      "from 6.2e-05 to 0.005: --train.lr-scheduler cosine now falls until step 40, and so far until 20"),
     ("cosine", 10, 40, "from 0.0058 to 0.0085"), ("cosine", 10, 20, None), ("cosine", 10, 15, None),
     ("constant", 20, 40, None)],
)  # fmt: skip
def test_a_longer_run_says_how_its_rate_jumps(schedule, done, longer, message):
    before, after = (config_of(lr_scheduler=schedule, steps=steps) for steps in (20, longer))
    found = learning_rate_jump(before, after, done)
    assert (message in found) if message else found is None


def test_a_warmup_that_goes_on_is_no_jump():
    config = config_of(lr_scheduler="cosine", warmup_steps=10)
    assert [learning_rate_jump(config, config, step) for step in (1, 5, 9, 10, 15)] == [None] * 5


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_prodigy_warms_up_without_a_rate_of_zero(schedule, rng):
    config = config_of(optimizer="prodigy", learning_rate=None, lr_scheduler=schedule, warmup_steps=5)
    assert float(learning_rate_schedule(config.train, learning_rates(config))(0)) == pytest.approx(0.2)
    start = {"unet.kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    found, _ = descend(config, start, lambda params, step: jax.tree.map(jnp.sin, params))
    assert 0 < np.abs(found["unet.kernel"] - start["unet.kernel"]).max() < 1


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_is_that_of_transformers(decay, rng):
    shape, start = (130, 140), rng.normal(size=(130, 140)).astype(np.float32)
    gradients = rng.normal(size=(STEPS, *shape)).astype(np.float32)
    config = config_of(optimizer="adafactor", lr_scheduler="linear", weight_decay=decay)
    found, _ = descend(config, {"unet.kernel": jnp.asarray(start)}, lambda _, step: {"unet.kernel": gradients[step]})
    value, rate = torch.nn.Parameter(torch.tensor(start)), learning_rate_schedule(config.train, learning_rates(config))
    optimizer = Adafactor([value], lr=RATE, scale_parameter=False, relative_step=False, weight_decay=decay)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(rate(step))
        value.grad = torch.tensor(gradients[step])
        optimizer.step()
    np.testing.assert_allclose(found["unet.kernel"], value.detach().numpy(), atol=2e-6)
    assert np.abs(found["unet.kernel"] - start).max() > 0.05


def schedule_free_reference(start: np.ndarray, gradients: np.ndarray, warmup: int, decay: float):
    """`AdamWScheduleFree` of facebookresearch/schedule_free with its defaults: y, x and the rates, in float64."""
    y, z, second, highest, total, rates = start.copy(), start.copy(), 0.0, 0.0, 0.0, []
    for k, gradient in enumerate(gradients):
        rate = RATE * min(1, (k + 1) / max(warmup, 1))
        second = 0.999 * second + 0.001 * gradient**2
        step = gradient / (np.sqrt(second / (1 - 0.999 ** (k + 1))) + 1e-8) + decay * y
        highest = max(rate, highest)
        total += highest**2
        share = highest**2 / total
        y = y + share * (z - y) + rate * (0.9 * (1 - share) - 1) * step
        z = z - rate * step
        rates.append(rate)
    return y, (y - (1 - 0.9) * z) / 0.9, rates


@pytest.mark.parametrize("warmup", [0, 1, 6])
def test_schedule_free_adamw_is_that_of_its_authors(warmup, rng):
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(STEPS, 4, 3))
    config = config_of(optimizer="schedule_free_adamw", warmup_steps=warmup)
    found, state = descend(
        config, {"unet.kernel": jnp.asarray(start, jnp.float32)},
        lambda _, step: {"unet.kernel": jnp.asarray(gradients[step], jnp.float32)},
    )  # fmt: skip
    y, x, rates = schedule_free_reference(start, gradients, warmup, 0.1)
    np.testing.assert_allclose(found["unet.kernel"], y, atol=2e-5)
    np.testing.assert_allclose(averaged_params(state, found)["unet.kernel"], x, atol=2e-5)
    reported = learning_rate_schedule(config.train, learning_rates(config))
    np.testing.assert_allclose([float(reported(step)) for step in range(STEPS)], rates, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "prodigy", "schedule_free_adamw"])
def test_what_nothing_reads_stays_as_it_is_under_every_rule(optimizer, rng):
    config = config_of(optimizer=optimizer, learning_rate=None, warmup_steps=2)
    start = {name: jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for name in ("unet.read", "text_encoder.unread")}

    def gradient(params: dict, step: int) -> dict:
        return {"unet.read": jnp.sin(params["unet.read"]), "text_encoder.unread": jnp.zeros((4, 3))}

    found, state = descend(config, start, gradient, {"text_encoder.unread"})
    for params in (found, averaged_params(state, found)):
        np.testing.assert_allclose(params["text_encoder.unread"], start["text_encoder.unread"], rtol=1e-6)
        assert np.abs(params["unet.read"] - start["unet.read"]).max() > 1e-6
    decayed, _ = descend(config, start, gradient)
    assert np.abs(decayed["text_encoder.unread"] - start["text_encoder.unread"]).max() > 0


# What nothing reads


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: write_pipeline(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def encoders(pipe) -> dict[str, torch.nn.Module]:
    return {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2") if hasattr(pipe, name)}


def torch_features(pipe, clip_skip: int) -> list[torch.Tensor]:
    prompt_embeds, _, *pooled = pipe.encode_prompt(
        ["a cat"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    return [prompt_embeds, *pooled[:1]]


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_reads_is_what_pytorch_gives_no_gradient(folders, kind, clip_skip):
    pipe, base = in_torch(folders[kind]), BaseModel.read(folders[kind], "float32", clip_skip)
    sum(feature.sum() for feature in torch_features(pipe, clip_skip)).backward()
    expected = set()
    for name, model in encoders(pipe).items():
        names = parameter_names(base.module(name).shapes)
        expected |= {f"{name}.{names[canonical(key)]}" for key, p in model.named_parameters() if p.grad is None}
    config = configure((1, 1), text_encoder=True, text={"clip_skip": clip_skip})
    found = unused_parameters(base, trained_shapes(base, config))
    assert found == expected
    assert bool(found) == (kind == "sdxl" or clip_skip > 0)


def test_adapters_of_layers_that_nothing_reads_are_among_it(folders):
    config = configure((1, 1), text_encoder=True, lora={"rank": 2}, text={"clip_skip": 1})
    base = add_trainable(BaseModel.read(folders["sdxl"], "float32", 1), config)
    found = unused_parameters(base, trained_shapes(base, config))
    assert {name.split(".self_attn")[0] for name in found} == {
        "text_encoder.encoder.layers.2",
        "text_encoder.encoder.layers.3",
    }
    assert {name.rpartition("lora_")[2] for name in found} == {"A.kernel", "B.kernel"}


def test_text_encoders_after_ten_adamw_steps_are_those_of_pytorch(folders, mesh, rng):
    config = configure((1, 1), text_encoder=True, weight_decay=0.1, learning_rate=1e-3)
    base = BaseModel.read(folders["sdxl"], "float32")
    params = flatten_components(load_params(base, mesh, base.text_encoder_names, base.text_encoder_names))
    no_gradient = unused_parameters(base, trained_shapes(base, config))
    ids, pull = base.text.tokenize(["a cat"]), {}

    def loss(params: dict) -> jax.Array:
        encoder_params = {name: {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}
                  for name in base.text_encoder_names}  # fmt: skip
        embeddings = jax.tree.leaves(base.text.encode(encoder_params, ids))
        return sum(jnp.vdot(part, pull[part.shape]) for part in embeddings)

    pipe = in_torch(folders["sdxl"])
    models = encoders(pipe)
    parameters = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    for feature in torch_features(pipe, 0):
        pull[tuple(feature.shape)] = rng.normal(size=feature.shape).astype(np.float32)
    for _ in range(10):
        optimizer.zero_grad()
        sum((part * torch.tensor(pull[tuple(part.shape)])).sum() for part in torch_features(pipe, 0)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    found, _ = descend(config, params, jax.jit(lambda params, step: jax.grad(loss)(params)), no_gradient, steps=10)
    for name, model in models.items():
        names = parameter_names(base.module(name).shapes)
        for key, value in model.named_parameters():
            own = names[canonical(key)]
            expected = value.detach().numpy().transpose(import_axes(own, value.ndim))
            if not own.endswith(
                "k_proj.bias"
            ):  # softmax does not see it: its gradient is rounding, and Adam enlarges it
                np.testing.assert_allclose(found[f"{name}.{own}"], expected, atol=3e-5, err_msg=own)
    for name in no_gradient:
        np.testing.assert_array_equal(found[name], params[name])
