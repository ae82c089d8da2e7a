"""The keys in a LoRA file's head by which other programs tell what it is; all values are text."""

from collections.abc import Iterable

from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.weights.architectures import family_of


def kohya_metadata(config: DenoiserConfig, ranks: Iterable[int], alpha: float, is_lycoris: bool) -> dict[str, str]:
    """Returns the keys that kohya's tools and the web UIs read.

    The module that reads DoRA, LoHa and LoKr is LyCORIS; kohya's own `networks.lora` knows none.
    """
    family, dims = family_of(config), set(ranks)
    prediction = "v" if (config.sample_size or 0) > 64 else "epsilon"  # of the published models of SD 2.x
    return {
        "ss_network_module": "lycoris.kohya" if is_lycoris else "networks.lora",
        "ss_network_dim": str(*dims) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": family.kohya_version,
        "ss_v2": str(family.kohya_version == "sd_v2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec[prediction]}/lora",
    }


def transformer_metadata(config: DenoiserConfig, ranks: Iterable[int]) -> dict[str, str]:
    """Returns the keys of a flow transformer's LoRA: its rank and, of a published size, the base model.

    `ss_base_model_version` is what ai-toolkit writes (`get_base_model_version`: zimage, flux2_klein_4b), and
    `modelspec.architecture` what musubi-tuner does (`utils/sai_model_spec.py`: Z-Image/lora, Flux.2-klein-4b/lora).
    """
    family, dims = family_of(config), set(ranks)
    rank = {"ss_network_dim": str(*dims) if len(dims) == 1 else "Dynamic"}
    published = family.published_size(config.text_width)
    if published is None:
        return rank
    size = published.removeprefix(family.name)  # "-4b"
    return rank | {
        "ss_base_model_version": family.kohya_version + size.replace("-", "_"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec['flow']}{size}/lora",
    }
