"""The typed configuration of the UNet of Stable Diffusion."""

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.storage.typed import STRICT, Epsilon, Heads, JsonList, Square, Width, check_divides, check_lengths

MAX_LEVELS = 8
MAX_TRANSFORMERS = 512  # blocks in one UNet; SDXL has 70

ResnetCount = Annotated[int, Field(ge=1, le=16)]
Depth = Annotated[int, Field(ge=0, le=64)]
LatentSide = Annotated[int, Square, Field(ge=1, le=2**9)]
LevelWidths = Annotated[JsonList[Width], Field(min_length=1, max_length=MAX_LEVELS)]
BlockTypes = Annotated[JsonList[str], Field(min_length=1, max_length=MAX_LEVELS)]
LevelDepths = Annotated[JsonList[Depth | JsonList[Depth]], Field(max_length=MAX_LEVELS)]


@dataclass(frozen=True, config=STRICT)
class UNetConfig:
    """diffusers `UNet2DConditionModel`. Per-level fields take one value or a list."""

    sample_size: LatentSide | None = None  # latent side that the model was trained at
    in_channels: Width = 4
    out_channels: Width = 4
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Field(ge=0, le=1)] = 0
    down_block_types: BlockTypes = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: BlockTypes = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: LevelWidths = (320, 640, 1280, 1280)
    layers_per_block: ResnetCount | JsonList[ResnetCount] = 2
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width | JsonList[Width] = 1280
    attention_head_dim: Heads | JsonList[Heads] = 8
    transformer_layers_per_block: Depth | LevelDepths = 1
    reverse_transformer_layers_per_block: LevelDepths | None = None  # of the way up, lowest resolution first
    use_linear_projection: bool = False
    upcast_attention: bool | None = False  # softmax is float32 here whatever this says
    addition_embed_type: str | None = None
    addition_time_embed_dim: Width | None = None
    projection_class_embeddings_input_dim: Width | None = None

    @model_validator(mode="after")
    def check(self) -> "UNetConfig":
        """Refuses values that do not fit each other; the message names a key."""
        levels = len(self.block_out_channels)
        check_lengths(
            levels,
            down_block_types=self.down_block_types,
            up_block_types=self.up_block_types,
            layers_per_block=self.layers_per_block,
            cross_attention_dim=self.cross_attention_dim,
            attention_head_dim=self.attention_head_dim,
            transformer_layers_per_block=self.transformer_layers_per_block,
            reverse_transformer_layers_per_block=self.reverse_transformer_layers_per_block,
        )
        check_divides("norm_num_groups", self.norm_num_groups, self.block_out_channels)
        for heads, width, attends in zip(self.heads, self.block_out_channels, self.attending, strict=True):
            if attends:
                check_divides("attention_head_dim", heads, [width])
        if len(self.text_widths) > 1:
            raise ValueError(f"cross_attention_dim {list(self.text_widths)} differs between levels, which no text fits")
        is_nested = any(isinstance(depth, tuple) for depth in self.per_level(self.transformer_layers_per_block))
        if is_nested and self.reverse_transformer_layers_per_block is None:
            raise ValueError("transformer_layers_per_block is nested and needs reverse_transformer_layers_per_block")
        if sum(map(sum, (*self.down_transformers, *self.up_transformers))) > MAX_TRANSFORMERS:
            raise ValueError(f"transformer_layers_per_block asks for more than {MAX_TRANSFORMERS} blocks in all")
        for key, width in (("block_out_channels", self.block_out_channels[0]),
                           ("addition_time_embed_dim", self.addition_time_embed_dim or 0)):  # fmt: skip
            if width % 2:
                raise ValueError(f"{key} {width} is odd, and half of it are sines")
        if self.addition_embed_type == "text_time":
            for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key} is missing, which addition_embed_type 'text_time' needs")
        return self

    @property
    def downsampling(self) -> int:
        """Latents to one at the lowest level, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def native_size(self) -> int:
        """Side in latents that the model was trained at."""
        return self.sample_size or 64

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level. `attention_head_dim` holds the head *count*: diffusers' naming accident."""
        return self.per_level(self.attention_head_dim)

    @property
    def attending(self) -> tuple[bool, ...]:
        """Whether each level has cross-attention; the lowest one has it in the middle block."""
        block_types = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        crossed = [any(block_type.startswith("CrossAttn") for block_type in pair) for pair in block_types]
        return (*crossed[:-1], True)

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur: some levels have no attention."""
        return {heads for heads, attends in zip(self.heads, self.attending, strict=True) if attends}

    @property
    def text_widths(self) -> tuple[int, ...]:
        """Distinct widths of text that the levels with cross-attention read; a model that can be used has one."""
        widths = zip(self.per_level(self.cross_attention_dim), self.attending, strict=True)
        return tuple(dict.fromkeys(width for width, attends in widths if attends))

    @property
    def text_width(self) -> int:
        """Width of the text that cross-attention reads."""
        return self.text_widths[0]

    @property
    def text_width_key(self) -> str:
        """The key that the width of the text stands under."""
        return "cross_attention_dim"

    @property
    def layers(self) -> tuple[int, ...]:
        """ResNets of each level on the way down; there is one more on the way up."""
        return self.per_level(self.layers_per_block)

    @property
    def down_transformers(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks after each ResNet of each level on the way down."""
        depths = self.per_level(self.transformer_layers_per_block)
        return self.per_resnet("transformer_layers_per_block", depths, self.layers, self.down_block_types)

    @property
    def mid_transformers(self) -> int:
        """Transformer blocks of the middle block."""
        last = self.per_level(self.transformer_layers_per_block)[-1]
        return last[0] if isinstance(last, tuple) else last

    @property
    def up_transformers(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks after each ResNet on the way up, lowest resolution first."""
        key, depths = "reverse_transformer_layers_per_block", self.reverse_transformer_layers_per_block
        if depths is None:
            key, depths = "transformer_layers_per_block", self.per_level(self.transformer_layers_per_block)[::-1]
        return self.per_resnet(key, depths, tuple(count + 1 for count in self.layers[::-1]), self.up_block_types)

    def per_resnet(
        self, key: str, depths: tuple[Any, ...], counts: tuple[int, ...], block_types: tuple[str, ...]
    ) -> tuple[tuple[int, ...], ...]:
        """Spells depths out for every ResNet; a level without attention has none.

        Raises:
            ValueError: a level's list has not one entry for each of its ResNets.
        """
        depths_by_level = []
        for depth, count, block_type in zip(depths, counts, block_types, strict=True):
            of_level = depth if isinstance(depth, tuple) else (depth,) * count
            if not block_type.startswith("CrossAttn"):
                of_level = ()
            elif len(of_level) != count:
                raise ValueError(f"{key} has a list of {len(of_level)} for a level of {count} ResNets")
            depths_by_level.append(of_level)
        return tuple(depths_by_level)

    def per_level(self, value: Any) -> tuple[Any, ...]:
        """Repeats a single value for every level."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)
