"""Records of the two networks: `atd` and `unet`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Section

# Far beyond any known network: a weights file may hold any number, and these decide how much memory and time it costs.
MOST_HEADS, MOST_LAYERS, MOST_PIXELS_OF_A_CATEGORY = 64, 100, 1024
Size = Annotated[int, Field(gt=0, le=4096)]
Blocks = Annotated[int, Field(gt=0, le=8)]
Layers = Annotated[int, Field(gt=0, le=MOST_LAYERS)]
Window = Annotated[int, Field(gt=0, le=32)]
Ratio = Annotated[float, Field(gt=0, le=16)]


class Atd(Section):
    """The auxiliary network g (ATD, arXiv 2401.08209)."""

    dim: Size
    """Feature channels, a multiple of `heads`: 48 is ATD-light, 96 the paper's `atd_real`."""
    flavour: Literal["real", "classical"]
    """`real`: UPSR's `atd_real`; `classical`: the original ATD, whose checkpoints spandrel loads."""
    groups: Layers
    """Number of layer groups, each with its own token dictionary."""
    layers: Layers
    """Transformer layers per group."""
    heads: Annotated[int, Field(gt=0, le=MOST_HEADS)]
    """Heads of the window attention and the category attention."""
    window: Window
    """Side of an attention window in LR pixels."""
    category_size: Annotated[int, Field(gt=0, le=MOST_PIXELS_OF_A_CATEGORY)]
    """Pixels that attend to each other in the adaptive-category attention; larger costs more memory."""
    tokens: Size
    """Entries of each token dictionary."""
    reduced_dim: Size
    """Query and key channels of the token-dictionary attention."""
    ffn_kernel: Annotated[int, Field(gt=0, le=31)]
    """Side of the depthwise convolution in the feed-forward network, an odd number of pixels."""
    mlp_ratio: Ratio
    """Hidden channels of the feed-forward network as a multiple of `dim`."""
    lpips_weight: Annotated[float, Field(ge=0)]
    """λ of the loss L1 + λ · LPIPS; 0 leaves LPIPS out."""
    schedule: Literal["direct_x4", "x2_then_x4"]
    """`direct_x4` trains at `scale` only; `x2_then_x4` trains a ×2 network first and starts ×4 from its body."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"atd.dim {self.dim} is not a multiple of atd.heads {self.heads}")
        if self.groups * self.layers > MOST_LAYERS:
            raise ValueError(
                f"atd.groups · atd.layers is {self.groups * self.layers}: lower one, to {MOST_LAYERS} at most"
            )
        if self.ffn_kernel % 2 == 0:
            raise ValueError(f"atd.ffn_kernel {self.ffn_kernel} is not odd: add 1")
        if self.dim * self.mlp_ratio < 1:
            raise ValueError(f"atd.mlp_ratio {self.mlp_ratio} leaves no hidden channel: raise it")
        return self


ATD_TRAINING_KEYS = {"lpips_weight", "schedule"}
"""The keys of `atd` that do not describe the network but its training."""


class Unet(Section):
    """The denoiser's network, a UNet with Swin attention."""

    dim: Size
    """Base width in channels, a multiple of 16; the paper uses 160."""
    channel_mult: Annotated[tuple[Annotated[int, Field(gt=0, le=16)], ...], Field(min_length=1, max_length=6)]
    """Width of each level as a multiple of `dim`; each level after the first halves the resolution."""
    res_blocks: Blocks
    """Residual blocks per level of the encoder; a decoder has one more."""
    swin_dim: Size
    """Size of the Swin attention, a multiple of `head_dim`."""
    swin_depth: Blocks
    """Swin blocks per attention stage; every other one has shifted windows."""
    window: Window
    """Side of an attention window in pixels of the level."""
    head_dim: Size
    """Size per attention head."""
    mlp_ratio: Ratio
    """Hidden channels of the Swin blocks' MLP as a multiple of `swin_dim`."""
    tail_dim: Size
    """Size of the convolutions that bring the features to HR size."""
    condition: tuple[Literal["sr", "bicubic"], ...]
    """Images that condition the network: g(y) (`sr`), y↑ (`bicubic`), or both (the paper)."""
    lr_size: Size
    """Side of the LR patches that the attention is designed for. A level no larger than a window at that size has no
    shifted windows."""
    branches: Literal[1, 2]
    """Number of decoders. With 2, one predicts detail and one smooth structure, blended by W = (w−b)/(1−b)."""
    placebo: bool
    """Two branches: move their W by half of the image, both ways, so that it tells nothing of the place. If the right W
    gains anything, it gains over this."""
    skip: Literal["none", "condition", "edm"]
    """What the network corrects. `none`: nothing, its output is the image (the paper); `condition`: the first image of
    `condition`; `edm`: c·x_t + (1−c)·that image (arXiv 2206.00364). c is large where the noise is small and x_t
    differs from that image by more than noise; the network corrects c too."""
    sigma_data: Annotated[float, Field(gt=0)]
    """`skip: edm`: σ, the standard deviation of x0 − ŷ in [-1, 1]: what is assumed where x_t is too noisy to show it,
    and in the loss. The bundled ATD has 0.13 on BSD100. With less, LPIPS outweighs the MSE where there is little noise,
    and adds texture to a true x_t that had none missing."""
    hr_inputs: bool
    """Feed x_t and the first image of `condition` to the convolutions at HR size too; false only feeds them
    pixel-unshuffled at LR size (the paper)."""
    official_mask: bool
    """Use the released network's incorrect mask of shifted windows, which its weights need; false uses the correct
    one."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.dim % 16:
            raise ValueError(f"unet.dim {self.dim} is not a multiple of 16")
        if self.swin_dim % self.head_dim:
            raise ValueError(f"unet.swin_dim {self.swin_dim} is not a multiple of unet.head_dim {self.head_dim}")
        if self.swin_dim // self.head_dim > MOST_HEADS:
            raise ValueError(f"unet.swin_dim / unet.head_dim is above {MOST_HEADS}: raise unet.head_dim")
        if self.swin_dim * self.mlp_ratio < 1:
            raise ValueError(f"unet.mlp_ratio {self.mlp_ratio} leaves no hidden channel: raise it")
        if not self.condition or len(set(self.condition)) != len(self.condition):
            raise ValueError("unet.condition must name `sr`, `bicubic` or both, each once")
        return self
