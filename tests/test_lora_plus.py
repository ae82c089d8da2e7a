"""LoRA+: the matrices B of a LoRA learn at a multiple of the rate of the matrices A, under every update rule."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.training.optimizer import averaged_params, learning_rate_schedule, make_optimizer

RATE, RATIO, DECAY, STEPS = 1e-2, 16.0, 0.1, 10
RANK, INPUTS, OUTPUTS = 2, 6, 5
SHAPES = {LORA_A: (INPUTS, RANK), LORA_B: (RANK, OUTPUTS), MAGNITUDE: (OUTPUTS,)}
LAYERS = ("unet.mid.attn1.to_q", "text_encoder.layers.0.self_attn.q_proj")
TOKENS = f"text_encoder.embeddings.{PLACEHOLDER_EMBEDDING}"


def config_of(ratio: float, text: dict | None = None, **train) -> Config:
    own = {"learning_rate": RATE, "steps": STEPS, "weight_decay": DECAY, "max_grad_norm": 0.0}
    return Config.model_validate(
        {"train": own | train, "lora": {"rank": RANK, "b_rate_ratio": ratio}, "text": text or {}}
    )


def adapters(rng, layers=LAYERS) -> dict[str, jax.Array]:
    return {
        f"{layer}.{part}": jnp.asarray(rng.normal(size=shape), jnp.float32)
        for layer in layers
        for part, shape in SHAPES.items()
    }


def descend(config: Config, params: dict, gradients: list[dict]) -> tuple[dict, object]:
    optimizer = make_optimizer(config.train, learning_rates(config))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def tolerance(name: str) -> float:
    """In float32, 1 - 0.999 is off by 6e-5 of itself, and a first step by half as much."""
    return 3e-4 * RATE * (RATIO if name.endswith(LORA_B) else 1.0)


def adamw_in_float64(value: np.ndarray, gradients: list[np.ndarray], rates: list[float]) -> np.ndarray:
    value, first, second = np.float64(value), 0.0, 0.0
    for count, (gradient, rate) in enumerate(zip(np.float64(gradients), rates, strict=True), start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        value = value - rate * (direction + DECAY * value)
    return value


def test_b_takes_steps_of_the_ratio_times_the_rate_and_all_else_of_the_rate(rng):
    config = config_of(RATIO, lr_scheduler="cosine", warmup_steps=2)
    params, gradients = adapters(rng), [adapters(rng) for _ in range(STEPS)]
    found, _ = descend(config, params, gradients)
    schedule = learning_rate_schedule(config.train, learning_rates(config))
    for name, value in params.items():
        ratio = RATIO if name.endswith(LORA_B) else 1.0
        rates = [ratio * float(schedule(step)) for step in range(STEPS)]
        expected = adamw_in_float64(value, [gradient[name] for gradient in gradients], rates)
        np.testing.assert_allclose(found[name], expected, atol=tolerance(name), err_msg=name)


def test_two_layers_after_ten_adamw_steps_are_those_of_pefts_optimizer(rng):
    model = torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS), torch.nn.Linear(INPUTS, OUTPUTS))
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=["0", "1"], init_lora_weights=False))
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
    )
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    names = {f"unet.{name.replace('.default.weight', '.kernel')}": name for name in trained}
    params = {own: jnp.asarray(trained[name].detach().numpy().T) for own, name in names.items()}
    gradients = [{own: rng.normal(size=value.shape).astype(np.float32) for own, value in params.items()}
                 for _ in range(STEPS)]  # fmt: skip
    found, _ = descend(config_of(RATIO), params, gradients)
    for gradient in gradients:
        for own, name in names.items():
            trained[name].grad = torch.from_numpy(gradient[own].T.copy())
        optimizer.step()
    assert len(names) == 4
    for own, name in names.items():
        np.testing.assert_allclose(found[own], trained[name].detach().numpy().T, atol=tolerance(own), err_msg=own)


@pytest.mark.parametrize("train", [
    {"optimizer": "adamw", "mu_dtype": "bfloat16"}, {"optimizer": "adafactor"}, {"optimizer": "lion"},
    {"optimizer": "schedule_free_adamw", "warmup_steps": 3},
], ids=lambda train: train["optimizer"])  # fmt: skip
def test_b_moves_as_in_a_run_at_the_ratio_times_the_rate_and_a_as_in_one_at_the_rate(train, rng):
    params, gradients = adapters(rng), [adapters(rng) for _ in range(STEPS)]
    found, state = descend(config_of(RATIO, **train), params, gradients)
    runs = {factor: descend(config_of(1.0, **train | {"learning_rate": factor * RATE}), params, gradients)
            for factor in (1.0, RATIO)}  # fmt: skip
    for name in params:
        alone, its_state = runs[RATIO if name.endswith(LORA_B) else 1.0]
        for ours, others in ((found, alone), (averaged_params(state, found), averaged_params(its_state, alone))):
            np.testing.assert_allclose(ours[name], others[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_it_multiplies_the_rate_of_the_group_that_a_matrix_is_in_and_waits_for_its_phase(rng):
    text = {"learning_rate": 0.5 * RATE, "token_learning_rate": 3 * RATE}
    pivotal = {"placeholder_tokens": ("<sks>",), "token_training": "pivotal", "token_share": 0.2}
    config = config_of(RATIO, text | pivotal, weight_decay=0.0, optimizer="lion", text_encoder=True)
    params = adapters(rng) | {TOKENS: jnp.zeros((2, INPUTS))}
    found, _ = descend(config, params, [jax.tree.map(jnp.ones_like, params)] * STEPS)
    # Lion's steps are as long as the rate: 8 of the LoRA's after 2 of the token's.
    rates = {LAYERS[0]: RATE, LAYERS[1]: 0.5 * RATE}
    for layer, rate in rates.items():
        for part, expected in ((LORA_A, 8 * rate), (LORA_B, 8 * RATIO * rate), (MAGNITUDE, 8 * rate)):
            name = f"{layer}.{part}"
            np.testing.assert_allclose(params[name] - found[name], expected, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found[TOKENS], -2 * 3 * RATE, rtol=1e-5)


def test_what_is_kept_between_steps_does_not_depend_on_the_ratio(rng):
    params = adapters(rng)
    states = [descend(config_of(ratio), params, [params])[1] for ratio in (1.0, RATIO)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)
