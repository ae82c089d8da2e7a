"""How a family conditions its denoiser on a language model: which template, which length, which hidden states."""

from typing import NamedTuple


class ChatEncoderSpec(NamedTuple):
    """A Qwen3 language model that encodes prompts, and its tokenizer.

    Attributes:
        hidden_states: of transformers' `hidden_states`, side by side; negative ones count from the end.
        enable_thinking: what the chat template is told; off, it closes an empty thought after the prompt.
        length_multiple: tokens are padded to a multiple of it.
        has_lengths: whether the denoiser is told how many tokens are no padding; otherwise it sees the hidden states of
            padding as those of words.
        max_length: tokens that are read of a prompt, its template included.
        component, tokenizer: their folders in a diffusers model.
    """

    hidden_states: tuple[int, ...]
    enable_thinking: bool
    length_multiple: int
    has_lengths: bool
    max_length: int = 512
    component: str = "text_encoder"
    tokenizer: str = "tokenizer"


# diffusers `pipeline_z_image.py`, `_encode_prompt`; its transformer takes captions in blocks of 32 tokens
Z_IMAGE_ENCODER = ChatEncoderSpec((-2,), enable_thinking=True, length_multiple=32, has_lengths=True)
# diffusers `pipeline_flux2_klein.py`, `_get_qwen3_prompt_embeds`
KLEIN_ENCODER = ChatEncoderSpec((9, 18, 27), enable_thinking=False, length_multiple=512, has_lengths=False)
