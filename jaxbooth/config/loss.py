"""The section of a run's configuration that says what is minimised."""

from typing import Literal

from jaxbooth.config import limits
from jaxbooth.config.section import Section
from jaxbooth.diffusion.loss import LossType
from jaxbooth.diffusion.noise import TimestepDistribution
from jaxbooth.diffusion.schedule import PredictionType
from jaxbooth.diffusion.weighting import Weighting


class LossConfig(Section):
    """What is minimised, beyond the two terms themselves."""

    prediction_space: PredictionType | None = None
    """Space of the squared error; default: what the network predicts. flow is for flow models, v for the
    others."""
    weighting: Weighting = "uniform"
    """Weight over timesteps, of instance and prior rows. vlb is not for flow models; sigma_sqrt and cosmap are
    for them alone."""
    snr_gamma: limits.PositiveWeight = 5.0
    """Gamma of min_snr."""
    loss_type: LossType = "l2"
    """Function of the error; huber gives outliers less weight."""
    huber_c: limits.PositiveWeight = 0.1
    """Error at which huber changes from quadratic to linear."""
    outside_mask: Literal["ignore", "frozen"] = "ignore"
    """What --data.masks leaves out of an image: nothing is asked of it, or the frozen model's prediction."""
    timestep_sampling: TimestepDistribution = "uniform"
    """Distribution of the training timesteps."""
    timestep_mean: limits.LogitMean = 0.0
    """Mean of logit_normal, before the sigmoid; larger is noisier."""
    timestep_std: limits.LogitStd = 1.0
    """Standard deviation of logit_normal, before the sigmoid."""
    mode_scale: limits.ModeScale = 1.29
    """Of mode; above 0 prefers the middle, below 0 both ends."""
    timestep_shift: limits.TimestepShift | Literal["resolution"] | None = None
    """Of flow models: shift of the training timesteps, above 1 towards noise; resolution computes it from the size of
    the images. Default: the checkpoint's, which is in its timesteps already if it does not depend on the size."""
    min_timestep: limits.Timestep = 0
    """Smallest timestep sampled."""
    max_timestep: limits.Timestep | None = None
    """Largest timestep sampled; default: the schedule's last."""
    noise_offset: limits.NoiseStrength = 0.0
    """Strength of noise that is constant over an image, so that the model learns darker and brighter images (0.05
    to 0.1)."""
    input_perturbation: limits.NoiseStrength = 0.0
    """Strength of extra noise on the input that is not part of the target (0.1 in its paper)."""
