"""What a single-file checkpoint says about what its network predicts."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.yaml import read_yaml
from jaxbooth.weights.family import Family
from jaxbooth.weights.ldm.names import UNET_PREFIX

V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # empty tensors; NoobAI-XL began it, ComfyUI and Forge read them
TYPES = {"v": "v_prediction", "eps": "epsilon", "v_prediction": "v_prediction", "epsilon": "epsilon"}
TELLTALE = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09


class Prediction(NamedTuple):
    """Prediction type in diffusers' words, or None where nothing says it, and whether training reached zero SNR."""

    type: str | None
    zero_snr: bool


def read_prediction(tensors: Any, file: Path, prediction_type: str | None, family: Family | None = None) -> Prediction:
    """Finds the prediction type of a checkpoint.

    The first of these that says something: `prediction_type`; the marker tensor `v_pred`; the metadata
    `modelspec.prediction_type` (https://github.com/Stability-AI/ModelSpec); `parameterization` in the YAML file of the
    same name, as web UIs have it; for a `family`, what its models predict. Both kinds of SD 2.x have the same shapes;
    they are told apart as ComfyUI does it, by the spread of one bias of the UNet.

    Args:
        tensors: the open checkpoint.
        family: None if the caller knows the model's own scheduler.

    Raises:
        UserError: the metadata or the YAML file hold an unknown word.
    """
    names = set(tensors.keys())
    said = (
        prediction_type
        or ("v_prediction" if V_MARKER in names else None)
        or parse_type((tensors.metadata() or {}).get("modelspec.prediction_type"), f"{file}: modelspec.prediction_type")
        or read_inference_config(file.with_suffix(".yaml"))
    )
    if said is None and family and family.name == "sd21":
        spread = float(np.std(tensors.get_tensor(TELLTALE).astype(np.float32))) if TELLTALE in names else 0.0
        said = "v_prediction" if spread > V_SPREAD else "epsilon"
    said = said or ("epsilon" if family else None)
    return Prediction(said, ZERO_SNR_MARKER in names and said == "v_prediction")


def parse_type(value: Any, source: str) -> str | None:
    """Returns diffusers' word for a prediction type.

    Raises:
        UserError: it is unknown.
    """
    if value is None:
        return None
    if not isinstance(value, str) or value not in TYPES:
        raise UserError(
            f"{source} is {short_repr(value)}; expected one of {', '.join(TYPES)}, or pass --prediction-type."
        )
    return TYPES[value]


def read_inference_config(path: Path) -> str | None:
    """Returns the prediction type in an LDM inference configuration, whose default is epsilon; None without a file.

    Raises:
        UserError: the file is no such configuration.
    """
    if not path.is_file():
        return None
    try:
        params = read_yaml(path)["model"]["params"]
        return parse_type(params.get("parameterization", "eps"), f"{path}: parameterization")
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is no inference configuration of a checkpoint; correct it or move it away.") from None
