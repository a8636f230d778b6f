"""The configuration of SISMA."""

import dataclasses
from typing import Any

from sisma_jax.common.errors import InputError
from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS
from sisma_jax.models.layers.style_encoder import check_levels

MIXERS = ("mamba", "attention")
MODULATIONS = ("gate", "shift")
STYLES = ("none", "attention", "full_attention", "mamba")
REMAT_POLICIES = ("none", "names", "dots", "block")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SISMAConfig:
    """Sizes of a SISMA model; the defaults are those of the reported model (`large`).

    The paper publishes the block's structure but no sizes. These are our choice, after DiT and
    U-Shape Mamba.

    Raises:
      InputError: if a value is out of range, or values contradict each other.
    """

    latent_size: int = 32
    """Height and width of the latents."""
    latent_channels: int = 4
    factor: int = 8
    """Down-sampling of the autoencoder; label maps measure latent_size * factor."""
    num_classes: int = 19
    patch: int = 1
    width: int = 768
    """Token width D."""
    depth: int = 12
    """Number of blocks N."""
    mixer: str = "mamba"
    """How tokens mix in a block: "mamba" (SISMA), or "attention", the twin it is compared with.
    The twin ignores `state`, `expand`, `orders` and `scan`; SISMA ignores `attention_head`."""
    state: int = 16
    """State size n per channel of the scan (mamba mixer only)."""
    expand: int = 2
    """Ratio of scanned channels to width (mamba mixer only)."""
    orders: int = 1
    """Scan orders K per layer: 1, 2 or 4 (mamba mixer only)."""
    attention_head: int = 64
    """Channels per head, a divisor of `width` (attention only)."""
    modulation: str = "gate"
    """How time modulates the output of a sub-layer: "gate" multiplies it (adaLN-Zero), "shift" adds
    to it, the literal reading of the paper's figure."""
    ff_ratio: int = 4
    """Ratio of the feed-forward network's hidden channels to width; the twin at 7 has as many
    parameters as SISMA at 4."""
    mask_channels: int = 64
    """Channels of the mask encoder's first convolution; each further convolution doubles them."""
    dtype: str = "bfloat16"
    """Compute type of linear maps and convolutions; scan, norms and parameters are float32."""
    remat: str = "none"
    """What the backward pass recomputes to save memory, from the least to the most: "none";
    "names", everything but the results of linear maps and of scans; "dots", everything but the
    results of linear maps; or "block", a whole block (`kept`)."""
    style: str = "none"
    """How blocks read the style of a reference face: "none" (SISMA as published), "attention" to
    one token per class, conditioned on the mask, "full_attention", without this condition, or
    "mamba", a second Cross-Mamba; see `style_mixers`. Both attentions use `attention_head`."""
    style_channels: int = 4
    """Channels per class in the style encoder's first convolution; with `style`."""
    style_levels: int = 5
    """Number of resolutions from which the style encoder takes features; with `style`."""
    style_features: int = 256
    """Features per class and level; with `style`."""
    style_colours: bool = False
    """Also give the style encoder the classes' mean colours, unlike SCA-DM; with `style`."""
    scan: str = "auto"
    """Implementation of the selective scan: one of `selective_scan`'s, or "auto" for the best
    on the platform at hand (mamba mixer only)."""

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
                "halves the map, so their product must be a power of two"
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
        """Number of sub-layers per block."""
        return 3 if self.style == "none" else 4

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows and columns of tokens."""
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
        """A small configuration for tests and demonstrations on a CPU."""
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
