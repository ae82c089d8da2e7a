"""What a model family is: the types of the entries in `jaxbooth.weights.architectures`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from jaxbooth.assets import ASSETS
from jaxbooth.diffusion.flow import MuLaw
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.models.layers import Layers
from jaxbooth.weights.denoiser_file.names import DenoiserFile


class DenoiserSpec(NamedTuple):
    """The network that training changes.

    Attributes:
        component: its folder in a diffusers model.
        config: the typed view of its `config.json`.
        module: builds the network from the configuration.
        kohya_prefix: of its modules in kohya's LoRA files.
        has_ldm_names: whether those files name its modules as single files do, and not as diffusers does.
    """

    component: str
    config: type
    module: Callable[[Any, Layers], nnx.Module]
    kohya_prefix: str
    has_ldm_names: bool = False

    @property
    def class_name(self) -> str:
        """The network's class in diffusers, which has the same name here."""
        return self.module.__name__  # ty: ignore[missing-attribute]


class VAESpec(NamedTuple):
    """The autoencoder.

    Attributes:
        config: the typed view of its `config.json`.
        module: builds the network from the configuration.
    """

    config: type
    module: Callable[[Any, Layers], nnx.Module]


class TextEncoderSpec(NamedTuple):
    """A CLIP text encoder and its tokenizer.

    Attributes:
        component, tokenizer: their folders in a diffusers model.
        pad_token: fills prompts up to 77 tokens.
        has_projection: whether a pooled embedding is made of its last hidden state.
        ldm_prefix: of its tensors in single files.
        kohya_prefix: of its modules in kohya's LoRA files.
        embedding_key: of its rows in a file of learned embeddings; None: the token itself.
    """

    component: str
    tokenizer: str
    pad_token: str
    has_projection: bool
    ldm_prefix: str
    kohya_prefix: str
    embedding_key: str | None


class ChatEncoderSpec(NamedTuple):
    """A language model that reads prompts in its chat template. It is run once and never trained.

    Attributes:
        component, tokenizer: their folders in a diffusers model.
        hidden_states: indices of those that make the prompt embeddings, side by side, as transformers counts them: 0 is
            the embedding of the tokens, -1 the last layer's output after the norm.
        enable_thinking: argument of the chat template.
        max_length: tokens of a prompt that are read, the template's included.
        pads_to_max_length: every prompt is `max_length` tokens long, and its padding is a condition, too.
    """

    component: str
    tokenizer: str
    hidden_states: tuple[int, ...]
    enable_thinking: bool
    max_length: int = 512
    pads_to_max_length: bool = False


class Conditioning(NamedTuple):
    """How CLIP's hidden states become what the denoiser takes besides latents and timesteps.

    Attributes:
        skipped_layers: the text encoders' last layers that the prompt embeddings leave out, before any `clip_skip`.
        has_final_norm: whether the prompt embeddings pass through the text encoder's final LayerNorm.
        has_pooled: whether the last text encoder's pooled embeddings and the image's time ids (its size, crop and
            target size) are conditions too.
        zeros_for_empty_prompt: whether an empty prompt is all zeros, unless `model_index.json` says otherwise.
    """

    skipped_layers: int = 0
    has_final_norm: bool = True
    has_pooled: bool = False
    zeros_for_empty_prompt: bool = False


CLIP_CONDITIONING = Conditioning()


class FamilySampling(NamedTuple):
    """How models of a family are sampled unless something else is asked for.

    Attributes:
        prior_sampler: of class images.
        sampler: of all other images.
        mu_law: by which a flow model's dynamic shift follows from the size of the image.
    """

    guidance_scale: float
    sampler: SamplerName = "dpmpp_2m"
    prior_sampler: SamplerName = "ddpm"
    mu_law: MuLaw = "linear"


class Distillation(NamedTuple):
    """The distilled models of a family, which need few steps and no guidance.

    Attributes:
        base: Hub id of the model that they were distilled from.
        steps: with which they are sampled.
        sampler: with which they are sampled, too.
        scheduler_keys: keys of `scheduler_config.json` that they have, and the values by which they are told, where
            `model_index.json` does not say it.
    """

    base: str
    steps: int
    sampler: SamplerName
    scheduler_keys: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: its short name on the command line, if it has one published size.
        title: as messages name it.
        published: folder in `assets/families` -> Hub ids whose configurations those are; one for each of `text_widths`.
        pipeline: class in `model_index.json`.
        pipeline_title: of all families with that class, as messages name them.
        denoiser_keys: keys of the denoiser's `config.json` that tell the family from others, and their values.
        text_widths: of the prompt embeddings of published models, by which files without a configuration are
            recognised.
        modelspec: prediction type -> architecture (https://github.com/Stability-AI/ModelSpec).
        kohya_version: `ss_base_model_version` in the metadata of kohya's LoRA files.
        denoiser_file: how single files are recognised and what they call their tensors, where they hold the denoiser
            alone; None: they hold the whole model in the layout of latent diffusion.
        has_inference_yaml: whether single files that predict v have a YAML file beside them, which web UIs read; the
            others are marked by an empty tensor.
        hub_tag: of model cards.
    """

    name: str
    title: str
    published: Mapping[str, tuple[str, ...]]
    pipeline: str
    pipeline_title: str
    denoiser_keys: Mapping[str, Any]
    text_widths: tuple[int, ...]
    denoiser: DenoiserSpec
    vae: VAESpec
    text_encoders: tuple[TextEncoderSpec, ...]
    sampling: FamilySampling
    distilled: Distillation
    modelspec: Mapping[str, str]
    kohya_version: str
    hub_tag: str
    conditioning: Conditioning = CLIP_CONDITIONING
    chat_encoder: ChatEncoderSpec | None = None
    denoiser_file: DenoiserFile | None = None
    has_inference_yaml: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        """Folders of a diffusers model that hold weights."""
        encoders = (*self.text_encoders, *([self.chat_encoder] if self.chat_encoder else []))
        return (self.denoiser.component, "vae", *(encoder.component for encoder in encoders))

    @property
    def half_dtype(self) -> str:
        """The dtype of 16 bits that the family's models are used in."""
        return "bfloat16" if self.chat_encoder else "float16"

    @property
    def text_width(self) -> int:
        """Width of the prompt embeddings of the family's first published model."""
        return self.text_widths[0]

    def published_size(self, text_width: int) -> str | None:
        """Returns the folder in `assets/families` of the model that takes prompt embeddings of a width, if any does."""
        return dict(zip(self.text_widths, self.published, strict=True)).get(text_width)

    def published_model(self, text_width: int) -> str | None:
        """Returns the Hub id of the published model that takes prompt embeddings of a width, if any does."""
        size = self.published_size(text_width)
        return self.published[size][0] if size else None


class PublishedModel(NamedTuple):
    """A model whose configurations ship with jaxbooth.

    Attributes:
        name: its folder in `assets/families`.
    """

    name: str
    family: Family

    @property
    def folder(self) -> Path:
        """The folder of the published configurations: a diffusers model without weights and tokenizers."""
        return ASSETS / "families" / self.name
