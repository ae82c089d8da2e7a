"""Settings of the loss that a model's noise schedule does not have are refused, and the message says what would do."""

from typing import Any

import pytest

from jaxbooth.config.rules import check_schedule
from jaxbooth.config.run_config import Config
from jaxbooth.diffusion.schedule import read_schedule
from jaxbooth.errors import UserError

ZERO = read_schedule({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
PLAIN = read_schedule({"prediction_type": "v_prediction"})
FLOW = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


def with_loss(values: dict[str, Any]) -> Config:
    """A configuration with other values in its section `loss`, and those of `prior` in that one."""
    loss = {key: value for key, value in values.items() if key != "prior"}
    return Config.model_validate({"loss": loss, "prior": values.get("prior", {})})


@pytest.mark.parametrize("key", ["min_timestep", "max_timestep"])
def test_a_timestep_beyond_the_schedule_is_refused(key):
    check_schedule(with_loss({key: 999}), PLAIN)
    with pytest.raises(UserError, match=rf"--loss\.{key.replace('_', '-')} 1000 is beyond .* last timestep, 999"):
        check_schedule(with_loss({key: 1000}), PLAIN)


@pytest.mark.parametrize("section", ["loss", "prior"])
def test_an_infinite_weight_at_zero_terminal_snr_is_refused(section):
    vlb = {"weighting": "vlb"} if section == "loss" else {"prior": {"weighting": "vlb"}}
    check_schedule(with_loss(vlb), PLAIN)
    check_schedule(with_loss(vlb | {"max_timestep": 998}), ZERO)
    with pytest.raises(UserError, match=rf"--{section}\.weighting vlb .* --loss\.max-timestep 998"):
        check_schedule(with_loss(vlb), ZERO)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ({"prediction_space": "flow"}, "--loss.prediction-space flow"),
        ({"weighting": "sigma_sqrt"}, "--loss.weighting sigma_sqrt"),
        ({"prior": {"weighting": "cosmap"}}, "--prior.weighting cosmap"),
        ({"timestep_shift": 3.0}, "--loss.timestep-shift 3.0"),
        ({"timestep_shift": "resolution"}, "--loss.timestep-shift resolution"),
    ],
)
def test_what_only_flow_models_have_is_refused_for_the_others(loss, named):
    check_schedule(with_loss(loss), FLOW)
    with pytest.raises(UserError, match=f"{named} .* of flow models, and this model is not one"):
        check_schedule(with_loss(loss), PLAIN)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ({"prediction_space": "v"}, "--loss.prediction-space v"),
        ({"weighting": "vlb"}, "--loss.weighting vlb"),
        ({"prior": {"weighting": "vlb"}}, "--prior.weighting vlb"),
    ],
)
def test_what_flow_models_do_not_have_is_refused(loss, named):
    check_schedule(with_loss(loss), PLAIN)
    with pytest.raises(UserError, match=f"{named} .* this is a flow model; choose"):
        check_schedule(with_loss(loss), FLOW)


@pytest.mark.parametrize("weighting", ["sigma_sqrt", "cosmap"])
def test_a_flow_weight_that_is_infinite_on_epsilon_at_pure_noise_is_refused(weighting):
    loss = {"prediction_space": "epsilon", "weighting": weighting}
    check_schedule(with_loss(loss | {"max_timestep": 998}), FLOW)
    with pytest.raises(UserError, match=rf"--loss\.weighting {weighting} is infinite .* --loss\.max-timestep 998"):
        check_schedule(with_loss(loss), FLOW)
