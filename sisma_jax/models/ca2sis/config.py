"""The configuration of CA2-SIS's generator."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sisma_jax.common.config import check_among, check_counts
from sisma_jax.common.errors import InputError
from sisma_jax.models.layers.style_encoder import check_grouping, check_levels

REMATS = ("none", "block")


class Stage(NamedTuple):
    """A stage of the decoder: a residual block and a spatial transformer at one resolution."""

    size: int
    """Side of its image in pixels."""
    inputs: int
    """Channels of the image that it receives, at half the size except in the first stage."""
    width: int
    """Channels of its image."""
    heads: int
    head_width: int
    self_attention: bool

    @property
    def inner_width(self) -> int:
        """Channels between the linear maps of its transformer."""
        return self.heads * self.head_width


def drawn_size(grid: int, widths: Sequence[int]) -> int:
    """The side of images drawn by stages of these widths; each but the first doubles `grid`."""
    return grid * 2 ** (len(widths) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CA2SISConfig:
    """Sizes of CA2-SIS's generator (see `model`).

    The defaults are the published ones for CelebAMask-HQ at 256 pixels.

    Raises:
      InputError: if a value is out of range, or values contradict each other.
    """

    num_classes: int = 19
    draw_background: bool = False
    """Give class 0 a mask code, too. Published for ADE20K; for CelebAMask-HQ the pixels of the
    background are those that no code describes."""
    mask_size: int = 128
    """Side to which masks are reduced before the mask embedder."""
    grid: int = 16
    """Side of the first stage's image; a mask code has grid x grid values. Every further stage
    doubles the side."""
    stem_width: int = 512
    """Channels to which the mask codes of all classes are mapped."""
    widths: tuple[int, ...] = (256, 128, 64, 32, 32)
    """Channels of the stages, coarsest first."""
    heads: int = 8
    """Heads of the attentions of all stages but the last."""
    head_width: int = 64
    """Channels per head of these."""
    last_heads: int = 4
    """Heads of the attention of the last stage."""
    last_head_width: int = 32
    """Channels per head of the last stage."""
    attention_sizes: tuple[int, ...] = (16, 32, 64)
    """Sides of the stages with self-attention."""
    norm_groups: int = 32
    style_channels: int = 4
    """Channels per class in the style encoder's first convolution."""
    style_levels: int = 5
    """Number of resolutions from which the style encoder takes features."""
    style_features: int = 256
    """Features per class and level."""
    style_colours: bool = False
    """Also give the style encoder the classes' mean colours; unpublished, for short trainings."""
    style_grouping: str = "published"
    """"published" mixes the classes in the style encoder as the published code does; "separate"
    keeps them apart (`style_encoder`)."""
    noise_width: int = 16
    """Numbers from which the mapping network makes random styles."""
    mapping_width: int = 512
    """Channels of the mapping network."""
    output_tanh: bool = True
    """End in tanh; False for weights published before December 2023."""
    remat: str = "block"
    """What the backward pass recomputes to save memory: "none", or "block", the transformers, as
    published."""
    dtype: str | None = None
    """Compute type of convolutions, attention and residual sums: "float32", "bfloat16", or None
    for the type of images and parameters, which may then also be float64."""

    def __post_init__(self) -> None:
        check_counts(self, "model", "widths")
        if self.num_classes > 255 or self.drawn_classes < 1:
            fewest = 1 if self.draw_background else 2
            raise InputError(
                f"model.num_classes is {self.num_classes}: choose {fewest} to 255 classes"
            )
        if self.image_size % self.mask_size:
            raise InputError(
                f"model.mask_size is {self.mask_size}: choose a divisor of the image's size, "
                f"{self.image_size}"
            )
        for width in (self.stem_width, *self.widths):
            if width % self.norm_groups:
                raise InputError(
                    f"model.norm_groups {self.norm_groups} does not divide the width {width}: "
                    "choose a divisor of model.stem_width and model.widths"
                )
        sizes = [stage.size for stage in self.stages]
        check_among("model.attention_sizes", self.attention_sizes, sizes, "the side of a stage")
        check_levels(self.style_levels, self.image_size)
        check_grouping(self.style_grouping)
        if self.remat not in REMATS:
            raise InputError(f"model.remat is {self.remat!r}: choose one of {', '.join(REMATS)}")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise InputError(f"model.dtype is {self.dtype!r}: choose 'float32' or 'bfloat16'")
        for name in ("draw_background", "style_colours", "output_tanh"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"model.{name} is {getattr(self, name)!r}: choose True or False")

    @property
    def image_size(self) -> int:
        """Height and width of images and label maps."""
        return drawn_size(self.grid, self.widths)

    @property
    def latent_size(self) -> int:
        """The side of what the model draws: its images are their own latents."""
        return self.image_size

    @property
    def latent_channels(self) -> int:
        return 3

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 1

    @property
    def drawn_classes(self) -> int:
        """Number of classes with a mask code: all, or all but class 0."""
        return self.num_classes - (not self.draw_background)

    @property
    def code_width(self) -> int:
        """Values of a mask code."""
        return self.grid**2

    @property
    def style_width(self) -> int:
        """Features of a style token."""
        return self.style_levels * self.style_features

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The decoder's stages, coarsest first."""
        last = len(self.widths) - 1
        return tuple(
            Stage(
                size=self.grid << i,
                inputs=self.widths[i - 1] if i else self.stem_width,
                width=width,
                heads=self.heads if i < last else self.last_heads,
                head_width=self.head_width if i < last else self.last_head_width,
                self_attention=self.grid << i in self.attention_sizes,
            )
            for i, width in enumerate(self.widths)
        )

    @classmethod
    def ade20k(cls, **changes: Any) -> "CA2SISConfig":
        """The published sizes for ADE20K's 151 classes, all of which are drawn."""
        return cls(**(dict(num_classes=151, draw_background=True) | changes))

    @classmethod
    def tiny(cls, **changes: Any) -> "CA2SISConfig":
        """The sizes of the golden values, with published widths, for tests on a CPU."""
        sizes = dict(
            num_classes=5,
            mask_size=32,
            grid=4,
            heads=2,
            head_width=8,
            last_heads=2,
            last_head_width=4,
            attention_sizes=(4, 8, 16),
            style_levels=3,
            style_features=6,
            noise_width=3,
            mapping_width=8,
        )
        return cls(**(sizes | changes))
