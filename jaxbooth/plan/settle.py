"""What `--train.remat auto` comes to on given devices."""

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.models.remat import Remat
from jaxbooth.plan.estimate import Estimate, estimate
from jaxbooth.plan.topology import Topology

# An estimate sees no gain in `dots`; see docs/speed.md.
AUTO_POLICIES: tuple[Remat, ...] = ("none", "attention", "blocks")


def resolve_remat(config: Config, base: BaseModel, topology: Topology) -> tuple[Config, Estimate]:
    """Returns the run with a named policy, and the estimate of its step.

    `auto` becomes the first of AUTO_POLICIES with which a step fits, and the last one where none does. On a CPU it
    becomes `none`, since XLA's CPU compiler keeps what any policy would drop.

    Args:
        config: with its resolution.
    """
    is_open = config.train.remat == "auto" and topology.platform != "cpu"
    for policy in AUTO_POLICIES if is_open else (config.train.remat_policy,):
        config = config.model_copy(update={"train": config.train.model_copy(update={"remat": policy})})
        estimated = estimate(config, base, topology)
        if estimated.fits():
            break
    return config, estimated
