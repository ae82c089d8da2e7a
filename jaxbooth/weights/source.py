"""Which base model the user asks for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A base model as it is looked for.

    Attributes:
        name: "demo", a diffusers folder, a checkpoint in one file, a Hub id ("owner/model"), or one file of a Hub
            repository ("owner/model/file.safetensors").
        revision: branch, tag or commit of a Hub model.
        variant: weight files to take where there are several (fp16).
        vae: another VAE, named as a model is.
        allow_pickle: also read `.ckpt` and `.bin`.
        offline: never ask the Hub.
        prediction_type: what the network predicts, where the checkpoint does not say it right.
        components: the model that text encoder, VAE, tokenizer and scheduler come from, where `name` is a file of a
            transformer alone; default: the published one of its size.
    """

    name: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    allow_pickle: bool = False
    offline: bool = False
    prediction_type: str | None = None
    components: str | None = None
