"""The keys in a LoRA file's head by which other programs tell what it is; all values are text."""

from collections.abc import Iterable, Mapping

from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.weights.architectures import family_of

# Width of the prompt embeddings -> `ss_base_model_version` and architecture
BASE_OF_TEXT_WIDTH: Mapping[int, tuple[str, str]] = {
    2560: ("zimage", "Z-Image"),
    7680: ("flux2_klein_4b", "Flux.2-klein-4b"),
    12288: ("flux2_klein_9b", "Flux.2-klein-9b"),
}


def kohya_metadata(config: DenoiserConfig, ranks: Iterable[int], alpha: float, is_dora: bool) -> dict[str, str]:
    """Returns the keys that kohya's tools and the web UIs read.

    The module that reads DoRA is LyCORIS; kohya's own `networks.lora` knows none.
    """
    family, dims = family_of(config), set(ranks)
    prediction = "v" if (config.sample_size or 0) > 64 else "epsilon"  # of the published models of SD 2.x
    return {
        "ss_network_module": "lycoris.kohya" if is_dora else "networks.lora",
        "ss_network_dim": str(*dims) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": family.kohya_version,
        "ss_v2": str(family.name == "sd21"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec[prediction]}/lora",
    }


def transformer_metadata(config: DenoiserConfig, ranks: Iterable[int]) -> dict[str, str]:
    """Returns the keys of a flow transformer's LoRA; of a base model in another size than the published ones, its rank.

    `ss_base_model_version` is what ai-toolkit writes (`get_base_model_version`), `modelspec.architecture` what
    musubi-tuner does (`utils/sai_model_spec.py`).
    """
    dims, base = set(ranks), BASE_OF_TEXT_WIDTH.get(config.text_width)
    rank = {"ss_network_dim": str(*dims) if len(dims) == 1 else "Dynamic"}
    if base is None:
        return rank
    version, architecture = base
    return rank | {
        "ss_base_model_version": version,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
    }
