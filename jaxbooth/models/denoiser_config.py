"""What the configuration of any denoiser says."""

from typing import Protocol


class DenoiserConfig(Protocol):
    """The typed view of a denoiser's `config.json`; each family has a class of its own."""

    @property
    def in_channels(self) -> int:
        """Latent channels that the denoiser takes."""
        ...

    @property
    def out_channels(self) -> int:
        """Latent channels of its prediction."""
        ...

    @property
    def text_width(self) -> int:
        """Width of the prompt embeddings that it takes."""
        ...

    @property
    def text_width_key(self) -> str:
        """The key of `config.json` that says so."""
        ...

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur."""
        ...

    @property
    def downsampling(self) -> int:
        """Latents to one at the lowest level, or to a token, along one side."""
        ...

    @property
    def sample_size(self) -> int | None:
        """Side in latents that the model was trained at, if the file says it."""
        ...

    @property
    def native_size(self) -> int:
        """Side in latents that the model, or else published models of its class, were trained at."""
        ...
