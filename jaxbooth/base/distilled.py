"""Models that were distilled to a few steps without guidance: how they are told, and what training does to them."""

from jaxbooth.base.model import BaseModel
from jaxbooth.console.messages import warn
from jaxbooth.storage.text import read_json
from jaxbooth.weights.family import Distillation, FamilySampling


def distillation(base: BaseModel) -> Distillation | None:
    """Returns how a model was distilled, by its `model_index.json` or else its scheduler, or None if it was not."""
    distilled = base.family.distilled
    index = read_json(base.folder / "model_index.json")
    if "is_distilled" in index:
        return distilled if index["is_distilled"] else None
    scheduler = read_json(base.folder / "scheduler" / "scheduler_config.json")
    signs = distilled.scheduler_keys
    return distilled if signs and all(scheduler.get(key) in values for key, values in signs.items()) else None


def default_sampling_of(base: BaseModel) -> FamilySampling:
    """Returns how a model is sampled unless something else is asked for: a distilled one without guidance."""
    sampling, distilled = base.family.sampling, distillation(base)
    if distilled is None:
        return sampling
    return sampling._replace(guidance_scale=1.0, sampler=distilled.sampler, prior_sampler=distilled.sampler)


def warn_about_distillation(base: BaseModel) -> None:
    """Warns that training a distilled model undoes what distillation achieved, and names the base to take instead."""
    distilled = distillation(base)
    if distilled:
        warn(
            f"this model was distilled to {distilled.steps} steps without guidance; training it as it is wears that "
            f"off, and few steps get blurry. Better train {distilled.base}, from which it was made."
        )
