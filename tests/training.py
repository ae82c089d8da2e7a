"""A small training task on the embedded model, for tests of the step."""

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.config import TrainConfig
from jaxbooth.data.latents import Bank
from jaxbooth.pipeline import Base
from jaxbooth.sharding import placement, replicated
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import TrainState, initial_state, trained_components
from jaxbooth.training.step import Task, make_dispatch, make_task

INSTANCES, PRIORS = 3, 5


def make_bank(base: Base, mesh: Mesh, text_encoder: bool = False, variants: int = 2) -> Bank:
    """Random moments and captions; image i's latents are near i, and its caption's text holds its number."""
    rng = np.random.default_rng(1)
    images = INSTANCES + PRIORS
    mean = rng.normal(size=(images, variants, *base.latent_shape(64))).astype(np.float32)
    logvar = np.full_like(mean, -4.0)
    caption = np.array([0, 0, 1, 2, 2, 2, 2, 2], np.int32)
    ids = base.tokenize(["an emoji of a sks cat", "a sks cat, crying", "an emoji of a cat"])
    text = ids if text_encoder else rng.normal(size=(3, 32, 128)).astype(np.float32)
    return jax.device_put(Bank(mean, logvar, caption, text), replicated(mesh))


def setup(base: Base, params: dict, mesh: Mesh, rows: tuple[int, int], **settings) -> tuple[Task, TrainState, Bank]:
    """Returns a task, its fresh state and its bank, for (instance, prior) rows."""
    config = TrainConfig(**{"batch_size": rows[0], "learning_rate": 1e-4, "steps": 100} | settings)
    place = placement(mesh)
    trained = {
        name: {key: jax.device_put(value, place(key, value.shape)) for key, value in params[name].items()}
        for name in trained_components(config.text_encoder)
    }
    state = initial_state(trained, make_optimizer(config), config.ema_decay is not None, mesh)
    task = make_task(base, config, rows[1], INSTANCES, PRIORS, seed=7, mesh=mesh)
    return task, state, make_bank(base, mesh, config.text_encoder)


def run(task: Task, state: TrainState, bank: Bank, counts: list[int], longest: int = 4):
    """Dispatches `counts` steps, one dispatch for each; returns the last state and all metrics by name."""
    dispatch = make_dispatch(task, make_optimizer(task.config), longest, state)
    columns: dict[str, list[np.ndarray]] = {}
    for count in counts:
        state, metrics = dispatch(state, bank, np.int32(count))
        for name, column in metrics.items():
            columns.setdefault(name, []).append(np.asarray(column)[:count])
    return state, {name: np.concatenate(parts) for name, parts in columns.items()}
