"""The two networks: `atd`, `unet`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Section


class Atd(Section):
    dim: Positive
    flavour: Literal["real", "classical"]
    groups: Positive
    layers: Positive
    heads: Positive
    window: Positive
    category_size: Positive
    tokens: Positive
    reduced_dim: Positive
    ffn_kernel: Positive
    mlp_ratio: Annotated[float, Field(gt=0)]
    lpips_weight: Annotated[float, Field(ge=0)]
    """Weight of LPIPS beside L1 in the loss."""
    schedule: Literal["direct_x4", "x2_then_x4"]
    """`direct_x4`: the network of `scale` from nothing; `x2_then_x4`: from the body of a ×2 network, trained first."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"atd.dim {self.dim} is not a multiple of atd.heads {self.heads}")
        return self


class Unet(Section):
    dim: Positive
    """Base width; 160 is the paper's."""
    channel_mult: Annotated[tuple[Positive, ...], Field(min_length=1)]
    res_blocks: Positive
    swin_dim: Positive
    swin_depth: Positive
    window: Positive
    head_dim: Positive
    mlp_ratio: Annotated[float, Field(gt=0)]
    tail_dim: Positive
    """Channels of the convolutions that bring the features to HR size."""
    condition: tuple[Literal["sr", "bicubic"], ...]
    """The images that condition the network."""
    lr_size: Positive
    """Side of the LR patches that the attention is laid out for: a level whose map is no larger than a window at
    that size is never shifted."""
    branches: Literal[1, 2]
    """With 2, a second decoder makes the smooth structure, and the uncertainty mixes the two."""
    global_skip: bool
    """Learn a correction of the first image of `condition` instead of the picture (which the paper does)."""
    official_mask: bool
    """Repeat the released network's mask of shifted windows, which its weights need, instead of the right one."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.dim % 16:
            raise ValueError(f"unet.dim {self.dim} is not a multiple of 16")
        if self.swin_dim % self.head_dim:
            raise ValueError(f"unet.swin_dim {self.swin_dim} is not a multiple of unet.head_dim {self.head_dim}")
        if not self.condition or len(set(self.condition)) != len(self.condition):
            raise ValueError("unet.condition needs `sr`, `bicubic` or both, each once")
        return self
