"""The sizes of SISMA."""

import dataclasses
from typing import Any

from kernels.selective_scan.api import IMPLEMENTATIONS
from sisma_jax.errors import InputError
from sisma_jax.models.style_encoder import check_levels

MIXERS = ("mamba", "attention")
MODULATIONS = ("gate", "shift")
STYLES = ("none", "attention", "full_attention", "mamba")
REMAT_POLICIES = ("none", "block", "dots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SISMAConfig:
    """Sizes of a SISMA model; the defaults are the reported model's (`large`).

    The paper publishes the block's structure and no sizes. These are our choice, after DiT and
    U-Shape Mamba.
    """

    latent_size: int = 32
    """Height and width of the latents."""
    latent_channels: int = 4
    factor: int = 8
    """Down-sampling of the autoencoder: label maps measure latent_size * factor."""
    num_classes: int = 19
    patch: int = 1
    width: int = 768
    """Token width D."""
    depth: int = 12
    """Number of blocks N."""
    mixer: str = "mamba"
    """How tokens mix in a block: "mamba" (SISMA), or "attention", the twin it is compared with.
    The twin has no use for `state`, `expand`, `orders` and `scan`, nor SISMA for `attention_head`:
    they change nothing there."""
    state: int = 16
    """States n of every channel's scan; of the mamba mixer."""
    expand: int = 2
    """Scanned channels over width; of the mamba mixer."""
    orders: int = 1
    """Scan orders K per layer: 1, 2 or 4; of the mamba mixer."""
    attention_head: int = 64
    """Channels of a head, a divisor of `width`; of the attention mixer."""
    modulation: str = "gate"
    """What time does to the output of a sub-layer: "gate" multiplies it (adaLN-Zero), "shift" adds
    to it, as the paper's figure reads literally."""
    ff_ratio: int = 4
    """Hidden channels of the feed-forward network over width; at 7 the twin has as many parameters
    as SISMA at 4."""
    mask_channels: int = 64
    """Channels of the mask encoder's first convolution; each further one doubles them."""
    dtype: str = "bfloat16"
    """Compute type of linear maps and convolutions; scan, norms and parameters are float32."""
    remat: str = "none"
    """What the backward pass computes again instead of keeping: "none", "block" (all of a block:
    least memory, about a third more time) or "dots" (all but the results of linear maps)."""
    style: str = "none"
    """How blocks read the style of a reference face: "none" (SISMA as published), "attention" to
    one token per class, conditioned on the mask, "full_attention", not conditioned, or "mamba", a
    second Cross-Mamba; see `style_mixers`. Both attentions have heads of `attention_head`."""
    style_channels: int = 4
    """Channels of each class in the style encoder's first convolution; with `style`."""
    style_levels: int = 5
    """Resolutions that it takes features at; with `style`."""
    style_features: int = 256
    """Features of each class and level; with `style`."""
    style_colours: bool = False
    """Tell the style encoder the classes' mean colours, which SCA-DM's is not; with `style`."""
    scan: str = "auto"
    """Implementation of the selective scan: one of `kernels.selective_scan`, or "auto" for the best
    where the program runs; of the mamba mixer."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise InputError(
                    f"model.{field.name} is {value!r}: set a whole number of at least 1"
                )
        if self.latent_size % self.patch:
            raise InputError(
                f"model.patch {self.patch} does not divide model.latent_size {self.latent_size}: "
                "choose a patch that does"
            )
        if self.downsampling & (self.downsampling - 1):
            raise InputError(
                f"model.factor x model.patch is {self.factor} x {self.patch}: the mask encoder "
                "halves the map, so their product has to be a power of two"
            )
        if self.mixer not in MIXERS:
            raise InputError(f"model.mixer is {self.mixer!r}: choose one of {', '.join(MIXERS)}")
        if self.style not in STYLES:
            raise InputError(f"model.style is {self.style!r}: choose one of {', '.join(STYLES)}")
        if self.style != "none":
            check_levels(self.style_levels, self.image_size)
        attends = self.mixer == "attention" or self.style.endswith("attention")
        if attends and self.width % self.attention_head:
            raise InputError(
                f"model.attention_head {self.attention_head} does not divide model.width "
                f"{self.width}: choose a head that does"
            )
        if self.modulation not in MODULATIONS:
            raise InputError(
                f"model.modulation is {self.modulation!r}: choose one of {', '.join(MODULATIONS)}"
            )
        if self.orders not in (1, 2, 4):
            raise InputError(
                f"model.orders is {self.orders}: choose 1, 2 or 4 scan orders per layer"
            )
        if self.mask_channels % 8:
            raise InputError(
                f"model.mask_channels is {self.mask_channels}: choose a multiple of 8, the number "
                "of normalisation groups"
            )
        if self.width % 4:
            raise InputError(
                f"model.width is {self.width}: choose a multiple of 4, for sines and cosines of "
                "two axes"
            )
        if self.remat not in REMAT_POLICIES:
            raise InputError(
                f"model.remat is {self.remat!r}: choose one of {', '.join(REMAT_POLICIES)}"
            )
        if self.scan not in ("auto", *IMPLEMENTATIONS):
            raise InputError(
                f"model.scan is {self.scan!r}: choose one of auto, {', '.join(IMPLEMENTATIONS)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"model.dtype is {self.dtype!r}: choose 'float32' or 'bfloat16'")

    @property
    def sublayers(self) -> int:
        """Of a block."""
        return 3 if self.style == "none" else 4

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.latent_size // self.patch,) * 2

    @property
    def downsampling(self) -> int:
        """Pixels of the label map along one side of a token."""
        return self.factor * self.patch

    @property
    def image_size(self) -> int:
        return self.latent_size * self.factor

    @classmethod
    def tiny(cls, **changes: Any) -> "SISMAConfig":
        """For tests and demonstrations on a CPU."""
        sizes = dict(width=128, depth=4, state=8, patch=2, mask_channels=32, dtype="float32")
        return cls(**(sizes | changes))

    @classmethod
    def small(cls, **changes: Any) -> "SISMAConfig":
        return cls(**(dict(width=384, depth=12, patch=2) | changes))

    @classmethod
    def base(cls, **changes: Any) -> "SISMAConfig":
        return cls(**(dict(width=512, depth=16) | changes))

    @classmethod
    def large(cls, **changes: Any) -> "SISMAConfig":
        """The size of the reported model."""
        return cls(**changes)

    @classmethod
    def xlarge(cls, **changes: Any) -> "SISMAConfig":
        return cls(**(dict(depth=24) | changes))
