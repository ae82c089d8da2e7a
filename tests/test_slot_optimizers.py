"""The update of each slot is that of its subject's own optimizer: its statistics run over that subject alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.training.optimizer import make_optimizer, make_slot_optimizer, rate_groups
from jaxbooth.training.slot_rows import rate_table

STEPS, PEAKS = (9, 5, 7), (1e-2, 3e-2, 2e-2)
UNREAD = "text_encoder.last.lora_A"
# Adafactor factors what has two sides of 128.
SHAPES = {
    "unet.up.lora_A.kernel": (6, 4),
    "unet.up.lora_B.kernel": (130, 140),
    "unet.scale": (5,),
    "text_encoder.lora_B.kernel": (3, 3),
}


def subject(peak: float, steps: int, **settings) -> Config:
    train = {"learning_rate": peak, "steps": steps, "weight_decay": 0.1} | settings
    sections = {name: train.pop(name, {}) for name in ("text", "lora")}
    return Config.model_validate({"train": train} | sections)


def made_up(step: int) -> list[dict[str, np.ndarray]]:
    """Values for every subject, whose sizes differ by a thousand."""
    draw = np.random.default_rng(step)
    unread = {UNREAD: np.full((2, 3), 1.0 if step == 0 else 0.0, np.float32)}  # without a gradient
    return [
        unread | {name: (draw.normal(size=shape) * size).astype(np.float32) for name, shape in SHAPES.items()}
        for size in (1e-3, 1.0, 0.05)
    ]


def train_alone(config: Config, start: dict, gradients: list[dict]) -> tuple[dict, Any]:
    optimizer = make_optimizer(config.train, learning_rates(config), [UNREAD])
    params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def train_in_slots(configs: list[Config], starts: list[dict], gradients: list[list[dict]]) -> tuple[dict, Any]:
    """The same with a leading axis of subjects, as `slots.slot_step` makes its updates."""
    train, b_ratio = configs[0].train, configs[0].lora.b_rate_ratio
    optimizer_of = functools.partial(make_slot_optimizer, train, no_gradient=[UNREAD], b_ratio=b_ratio)
    some_rates = dict.fromkeys(rate_groups(learning_rates(configs[0])), np.zeros((), np.float32))

    @jax.jit
    @jax.vmap
    def update(grads, state, params, rates):
        updates, state = optimizer_of(rates).update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    tables = [rate_table(config.train, learning_rates(config)) for config in configs]
    params = stack(starts)
    state = jax.vmap(optimizer_of(some_rates).init)(params)
    for step, grads in enumerate(gradients):
        rates = stack([{group: values[step] for group, values in table.items()} for table in tables])
        params, state = update(stack(grads), state, params, rates)
    return params, state


def stack(trees: list) -> dict:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


SETTINGS = {
    "constant": {},
    "warmup-ratio": {"warmup_steps": 2, "lora": {"rank": 4, "b_rate_ratio": 4.0}},
    "cosine": {"warmup_steps": 1, "lr_scheduler": "cosine"},
    "linear-groups": {
        "lr_scheduler": "linear", "text": {"learning_rate": 5e-3}, "text_encoder": True, "mu_dtype": "bfloat16"
    },
}  # fmt: skip
DEFAULT_RUN = {
    ("adamw", "linear-groups"), ("adafactor", "constant"), ("lion", "cosine"), ("prodigy", "constant"),
    ("schedule_free_adamw", "warmup-ratio"),
}  # fmt: skip
PAIRS = [
    pytest.param(name, key, marks=() if (name, key) in DEFAULT_RUN else pytest.mark.slow)
    for name in ("adamw", "adafactor", "lion", "prodigy", "schedule_free_adamw")
    for key in SETTINGS
]


@pytest.mark.parametrize(("optimizer", "key"), PAIRS)
def test_the_update_of_a_slot_is_that_of_its_subject_alone(optimizer, key):
    settings = SETTINGS[key]
    if optimizer == "schedule_free_adamw":
        settings = settings | {"lr_scheduler": "constant"}
    if optimizer == "prodigy":
        settings = settings | {"lora": {}}
    configs = [subject(peak, steps, optimizer=optimizer, **settings) for peak, steps in zip(PEAKS, STEPS, strict=True)]
    starts, gradients = made_up(0), [made_up(step) for step in range(1, 1 + min(STEPS))]
    together, states = train_in_slots(configs, starts, gradients)
    for slot, config in enumerate(configs):
        alone, state = train_alone(config, starts[slot], [grads[slot] for grads in gradients])
        assert jax.tree.map(lambda leaf: leaf.shape[1:], states) == jax.tree.map(jnp.shape, state)
        for name, value in alone.items():
            moved = np.abs(value - starts[slot][name]).max()
            assert (moved > 0) == (name != UNREAD), name
            # A moment next to the middle of two bfloat16 values may become either of them.
            rounding = 4e-3 * moved if config.train.mu_dtype == "bfloat16" else 1e-6 * np.abs(value).max()
            np.testing.assert_allclose(together[name][slot], value, rtol=1e-6, atol=rounding, err_msg=name)
