"""What is kept between steps in less than float32, and what that changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.config import Config
from jaxbooth.training.optimizer import make_optimizer

STEPS, RATE = 20, 1e-2


def after_some_steps(optimizer, mu_dtype, rng):
    """Parameters and optimizer state of a least-squares problem whose gradients stay of one size."""
    train = {"optimizer": optimizer, "mu_dtype": mu_dtype, "learning_rate": RATE, "weight_decay": 0.0}
    tx = make_optimizer(Config.model_validate({"train": train}))
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
