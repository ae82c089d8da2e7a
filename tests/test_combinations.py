"""Options that meet in one step: phases with averages, a frozen target with dropped captions, a file to start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.base.adapters import read_lora_init
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.base.trainable import add_trainable, init_trainable, trained_shapes
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.lora import merge
from jaxbooth.params import Params
from jaxbooth.training.step import gradients
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.write import write_peft
from tests.training import CAPTIONS, configure, run, setup

WORD = {"placeholder_tokens": ("sks",)}  # in the captions of `tests.training`
TARGETS = "attention+ff"


def moved(before: Params, after: Params) -> set[str]:
    """What changed: tokens, unet."""
    changed = [name for name, value in after.items() if not np.array_equal(value, before[name])]
    return {"tokens" if name.endswith(PLACEHOLDER_EMBEDDING) else name.split(".")[0] for name in changed}


def on_host(params: Params) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in params.items()}


def test_new_words_move_first_and_the_rest_after_them_and_the_average_follows_both(micro, micro_params, mesh):
    text = WORD | {"token_training": "pivotal", "token_share": 0.4}
    spec, state, frozen, source, key = setup(
        micro, micro_params, mesh, (2, 2), text=text, lora={"rank": 2}, steps=5, ema_decay=0.9, optimizer="adamw"
    )
    start = on_host(state.params)
    state, first = run(spec, state, frozen, source, key, [2])
    between, average = on_host(state.params), on_host(state.ema)
    assert moved(start, between) == moved(start, average) == {"tokens"}
    state, second = run(spec, state, frozen, source, key, [3])
    assert moved(between, on_host(state.params)) == {"unet"}
    assert moved(average, on_host(state.ema)) == {"tokens", "unet"}
    rates = np.concatenate([first["learning_rate"], second["learning_rate"]])
    np.testing.assert_allclose(rates, [5e-4, 5e-4, 1e-4, 1e-4, 1e-4])


@pytest.mark.parametrize("trains_text", [False, True])
def test_a_frozen_target_is_met_at_the_start_whatever_captions_are_dropped(trains_text, micro, micro_params, mesh):
    text = {"caption_dropout": 0.5} | (WORD if trains_text else {})
    settings = {"lora": {"rank": 2, "kind": "dora"}, "prior": {"target": "frozen"}, "text": text}
    spec, state, frozen, source, key = setup(micro, micro_params, mesh, (2, 8), text_encoder=trains_text, **settings)
    if spec.trains_text:
        plain = micro.text.encode(micro_params, micro.text.tokenize(CAPTIONS))
        source = source._replace(cache=source.cache._replace(frozen_text=plain))
    losses, grads = jax.jit(lambda params: gradients(spec, params, frozen, source, key, jnp.int32(0)))(state.params)
    assert losses.terms["instance_loss"] > 0.1
    assert losses.terms["prior_loss"] < 1e-9
    assert max(float(jnp.abs(grad).max()) for grad in grads.values()) > 1e-6


# A file to start from


def lora_file(folder, base, params, **settings):
    """A LoRA file of random values in the layout that `settings` ask for."""
    config = configure((2, 2), lora=settings)
    base = add_trainable(base, config)
    draw, adapters = np.random.default_rng(3), {}
    for component, values in init_trainable(base, config, trained_shapes(base, config), params).items():
        for name, value in values.items():
            noise = 0.1 * draw.normal(size=value.shape).astype(np.float32)
            adapters[f"{component}.{name}"] = np.asarray(value) * (name.endswith(MAGNITUDE)) + noise
    layers = {name.rsplit(".lora_", 1)[0] for name in adapters}
    alphas = dict.fromkeys(layers, base.lora.scale * base.lora.rank)
    write_peft(folder / "start.safetensors", LoraWeights(adapters, alphas), {})
    return folder / "start.safetensors", merge_all(base, params, adapters)


def merge_all(base, params, adapters) -> dict[str, np.ndarray]:
    """The UNet with adapters in its kernels."""
    own = {name.removeprefix("unet."): jnp.asarray(value) for name, value in adapters.items()}
    return on_host(merge(params["unet"] | own, base.lora))


@pytest.mark.parametrize("settings", [
    {"rank": 2, "targets": "attention"},
    {"rank": 2, "targets": TARGETS},
    {"rank": 3, "targets": TARGETS, "alpha": 1},
    {"rank": 4, "targets": TARGETS, "rslora": True},
])  # fmt: skip
def test_a_run_starts_as_the_model_of_its_file(settings, micro, micro_params, tmp_path):
    path, expected = lora_file(tmp_path, micro, micro_params, rank=2, alpha=5, targets="attention")
    config = configure((2, 2), lora=settings | {"init": path})
    base = add_trainable(micro, config)
    found = init_trainable(base, config, trained_shapes(base, config), micro_params)
    merged = merge_all(base, micro_params, {f"unet.{name}": value for name, value in found["unet"].items()})
    for name, value in merged.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_a_dora_run_starts_as_the_model_of_its_file(micro, micro_params, tmp_path):
    path, expected = lora_file(tmp_path, micro, micro_params, rank=2, kind="dora")
    config = configure((2, 2), lora={"rank": 4, "kind": "dora", "init": path})
    base = add_trainable(micro, config)
    found = init_trainable(base, config, trained_shapes(base, config), micro_params)
    merged = merge_all(base, micro_params, {f"unet.{name}": value for name, value in found["unet"].items()})
    for name, value in merged.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize(("file", "settings", "message"), [
    ({"rank": 2}, {"rank": 2, "kind": "dora"}, "holds a LoRA, and this run trains a DoRA; leave --lora.kind out"),
    ({"rank": 2, "kind": "dora"}, {"rank": 2}, "holds a DoRA, and this run trains a LoRA; set --lora.kind dora"),
    ({"rank": 4}, {"rank": 2}, "has rank 4, more than --lora.rank 2; raise it to 4"),
    ({"rank": 2, "targets": TARGETS}, {"rank": 2}, "does not train.*widen --lora.targets"),
])  # fmt: skip
def test_a_file_of_another_kind_is_refused(file, settings, message, micro, micro_params, tmp_path):
    path, _ = lora_file(tmp_path, micro, micro_params, **file)
    config = configure((2, 2), lora=settings | {"init": path})
    base = add_trainable(micro, config)
    with pytest.raises(UserError, match=message):
        read_lora_init(base, config, trained_shapes(base, config))
