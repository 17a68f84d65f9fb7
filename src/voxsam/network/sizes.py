"""The numbers of a model in one place: ModelConfig, and the named sizes vit_b, vit_l, vit_h, small and tiny."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

LEVELS = 4  # feature maps that the encoder hands to the decoder (paper, Fig. 4)
SAM_WINDOW = 14  # SAM's own window: its relative-position tables have 2 * 14 - 1 rows

# Model files bring their own sizes: these bounds keep a damaged or malicious file from asking for all memory.
Count = Annotated[int, Field(ge=1, le=256)]  # blocks, heads, layers, channels of an image
Side = Annotated[int, Field(ge=1, le=1024)]  # voxels or tokens on an axis
Width = Annotated[int, Field(ge=1, le=16_384)]  # channels of features

PROFILES: dict[str, dict[str, object]] = {
    "released": {"adapter_relu": True, "depth_start": "ones", "fusion": "double"},
    "paper": {"adapter_relu": False, "depth_start": "zeros", "fusion": "crop"},
}


class ModelConfig(BaseModel):
    """Everything that determines the shapes and the arithmetic of a network; unknown keys are refused.

    The paper's text and the released code differ in three places; `in_profile` sets all three:

    | field        | what                           | released             | paper                          |
    |--------------|--------------------------------|----------------------|--------------------------------|
    | adapter_relu | ReLU after the up-projection   | True                 | False (equation of Sec. 3.2)   |
    | depth_start  | depth table starts as          | ones                 | zeros                          |
    | fusion       | features and crop are fused at | twice the token grid | the crop's own grid (Sec. 3.4) |
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str
    width: Width
    depth: Count
    heads: Count
    mlp_ratio: Count = 4
    adapter: str = "spatial"  # what is inserted into each block and tuned: a name in voxsam.network.adapters.ADAPTERS
    adapter_width: Width  # of its bottleneck
    adapter_rank: Width | None = None  # of low-rank adapters; None: that of their authors
    adapter_twice: bool = False  # once for attention and once for the mlp, if the design has both variants
    tokens: Literal["volume", "slices"] = "volume"  # "slices": SAM's own 2D encoder, slice by slice
    channels: Count = 1  # images in the crop: several MR sequences, say
    crop: Side = 128  # side of the training crop, voxels
    stride: Side = 4  # voxels of the crop per token, on each axis
    patch: Side = 16  # side of the patch that one token sees, in upsampled voxels
    window: Side = 8  # side of an attention window, tokens
    position_grid: Side = 64  # side of SAM's table of absolute positions
    global_blocks: tuple[int, ...] = ()  # SAM's blocks with global attention: longer relative-position tables
    feature_width: Width = 256
    head_width: Width = 128
    queries: Width = 10
    prompt_layers: Count = 2
    prompt_heads: Count = 8
    prompt_mlp: Width = 2048
    adapter_relu: bool = True
    depth_start: Literal["ones", "zeros"] = "ones"
    fusion: Literal["double", "crop"] = "double"
    polarity: bool = False  # learned embeddings for positive and negative clicks (an extension)
    marks: bool = False  # click maps at the tokens (an extension; needs polarity); the name in model files
    click_maps: tuple[PositiveFloat, ...] = ()  # s.d. (voxels) of the click maps of a refinement head; (): no head
    click_similarity: tuple[PositiveFloat, ...] = ()  # s.d. (of a crop's intensities) of its similarity maps
    refine_width: Width = 32  # of that head at half resolution (an extension, voxsam.network.refinement)
    # The paper's ablations (Sec. 4.4); the defaults are what they are compared with.
    prompt_kind: Literal["sampler", "positional"] = "sampler"  # a click is the features under it, or its position
    prompt_levels: tuple[int, ...] = (LEVELS,)  # feature maps that clicks change; each has its own prompt encoder
    multi_layer: bool = True  # False: the decoder is given only the deepest feature map

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.width % self.heads or self.feature_width % (2 * self.prompt_heads):
            raise ValueError("width must divide by heads, feature_width by twice prompt_heads")
        if self.depth % LEVELS or self.crop % self.stride:
            raise ValueError(f"depth must divide by {LEVELS}, crop by stride")
        if self.tokens == "slices" and self.channels != 1:
            raise ValueError("tokens of slices are made of one channel")
        if self.marks and not self.polarity:
            raise ValueError("marks need polarity")
        if self.click_maps and (not self.polarity or self.crop % 16):
            raise ValueError("click_maps need polarity, and a crop of a multiple of 16")
        if self.click_similarity and not self.click_maps:
            raise ValueError("click_similarity needs click_maps")
        self._check_prompts()
        return self

    def _check_prompts(self) -> None:
        levels = self.prompt_levels
        if list(levels) != sorted(set(levels) & set(self.levels)) or levels[-1:] != (LEVELS,):
            given = "1 to 4" if self.multi_layer else "4 alone, for the decoder is given no other (multi_layer)"
            raise ValueError(f"prompt_levels must rise and end with {LEVELS}; they may be {given}")
        if self.marks and self.prompt_kind == "positional":
            raise ValueError("marks are of the sampler: a positional prompt says by itself where it lies")

    def in_profile(self, profile: Literal["released", "paper"]) -> ModelConfig:
        """The same sizes with the arithmetic of the released code or of the paper's text."""
        return self.model_copy(update=PROFILES[profile])

    @property
    def profile(self) -> str:
        """The profile's name: "released", "paper", or "own" for any other mixture of the three fields."""
        return next((name for name, fields in PROFILES.items() if self == self.model_copy(update=fields)), "own")

    @property
    def token_grid(self) -> int:
        """Tokens along a side of the training crop."""
        return self.crop // self.stride

    @property
    def levels(self) -> tuple[int, ...]:
        """The feature maps that the encoder makes and the decoder takes, the deepest (4) last."""
        return tuple(range(1, LEVELS + 1)) if self.multi_layer else (LEVELS,)

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """The blocks (from 1) after which a feature map is taken: 3, 6, 9, 12 of twelve."""
        return tuple(self.depth * level // LEVELS for level in self.levels)

    def window_of(self, block: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens (d, h, w) of a block's attention windows on a token grid; for slices SAM's: all, or 14 x 14."""
        if self.tokens == "volume":
            return self.window, self.window, self.window
        return (1, grid[1], grid[2]) if block in self.global_blocks else (1, SAM_WINDOW, SAM_WINDOW)

    def relative_rows(self, block: int) -> int:
        """Rows of the relative-position tables of a block (from 0): SAM's own number, before interpolation."""
        return 2 * (self.position_grid if block in self.global_blocks else SAM_WINDOW) - 1


VIT_B = ModelConfig(size="vit_b", width=768, depth=12, heads=12, adapter_width=384, global_blocks=(2, 5, 8, 11))
VIT_L = ModelConfig(size="vit_l", width=1024, depth=24, heads=16, adapter_width=512, global_blocks=(5, 11, 17, 23))
VIT_H = ModelConfig(size="vit_h", width=1280, depth=32, heads=16, adapter_width=640, global_blocks=(7, 15, 23, 31))
TINY = ModelConfig(
    size="tiny",
    width=128,
    depth=8,
    heads=4,
    mlp_ratio=2,
    adapter_width=64,
    crop=64,
    stride=4,
    patch=8,
    window=4,
    position_grid=16,
    feature_width=48,
    head_width=24,
    queries=8,
    prompt_heads=4,
    prompt_mlp=192,
    adapter_relu=False,
    depth_start="zeros",
    polarity=True,
    marks=True,
)
# The size of voxsam-tiny: 6^3 tokens, all of which see one another; a refinement head adds finer detail.
SMALL = TINY.model_copy(
    update={
        **{"size": "small", "width": 160, "heads": 5, "mlp_ratio": 3, "adapter_width": 80},
        **{"crop": 48, "stride": 8, "patch": 16, "window": 6, "position_grid": 8},
        **{"click_maps": (1.5, 6.0), "click_similarity": (0.35, 1.0)},
    }
)
SIZES = {config.size: config for config in (TINY, SMALL, VIT_B, VIT_L, VIT_H)}
