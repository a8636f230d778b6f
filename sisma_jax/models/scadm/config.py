"""The configuration of SCA-DM."""

import dataclasses
from typing import Any

from sisma_jax.common.config import check_among
from sisma_jax.common.errors import InputError
from sisma_jax.flows.diffusion import PUBLISHED, Diffusion
from sisma_jax.models.layers.style_encoder import check_grouping, check_levels
from sisma_jax.models.layers.unet import check_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCADMConfig:
    """Sizes of an SCA-DM; the defaults are the published ones (see `scadm`).

    Raises:
      InputError: if a value is out of range, or values contradict each other.
    """

    latent_size: int = 64
    """Height and width of the latents."""
    latent_channels: int = 3
    factor: int = 4
    """Down-sampling of the autoencoder; label maps measure latent_size * factor."""
    num_classes: int = 19
    channels: int = 224
    """Channels of the finest resolution; the embedding of t has four times as many."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Channels of each resolution over `channels`, finest first; each further level halves the
    latents."""
    blocks: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    """Sides, in latent pixels, of the resolutions with attention; the middle always has it."""
    head_width: int = 32
    spade_hidden: int = 128
    norm_groups: int = 32
    style_levels: int = 5
    """Number of resolutions from which the style encoder takes features."""
    style_features: int = 256
    """Features per class and level."""
    style_channels: int = 4
    """Channels per class in the style encoder's first convolution."""
    style_colours: bool = False
    """Also give the style encoder the classes' mean colours; unpublished, for short trainings."""
    style_grouping: str = "separate"
    """"separate" keeps the classes apart in the style encoder; "published" mixes them as the
    published code does, and is needed for its weights (`style_encoder`)."""
    mask_attention: bool = True
    """A pixel attends to the style of its own class only; False, the paper's ablation, lets it
    attend to all classes."""
    dtype: str = "bfloat16"
    """Compute type of convolutions, attention and residual sums."""
    diffusion: Diffusion = PUBLISHED
    """What the model predicts; keys of the config's section `flow`."""

    def __post_init__(self) -> None:
        check_sizes(self, "model", "latent_size")
        sides = tuple(self.latent_size >> level for level in range(len(self.multipliers)))
        name, what = "model.attention_sizes", "the side of a resolution"
        check_among(name, self.attention_sizes, sides, what)
        check_levels(self.style_levels, self.image_size)
        check_grouping(self.style_grouping)
        if not isinstance(self.diffusion, Diffusion):
            raise InputError(
                f"model.diffusion is {self.diffusion!r}, which is no key: set flow.prediction and "
                "flow.zero_terminal_snr"
            )
        if type(self.mask_attention) is not bool:
            raise InputError(
                f"model.mask_attention is {self.mask_attention!r}: choose True or False"
            )

    @property
    def image_size(self) -> int:
        """Height and width of images and label maps."""
        return self.latent_size * self.factor

    @property
    def time_width(self) -> int:
        return 4 * self.channels

    @property
    def style_width(self) -> int:
        """Features of a style token."""
        return self.style_levels * self.style_features

    @classmethod
    def tiny(cls, **changes: Any) -> "SCADMConfig":
        """A small configuration for tests on a CPU."""
        sizes = dict(
            latent_size=8,
            factor=2,
            channels=16,
            multipliers=(1, 2),
            blocks=1,
            attention_sizes=(4,),
            head_width=8,
            spade_hidden=8,
            norm_groups=4,
            style_levels=2,
            style_features=8,
            style_channels=2,
            dtype="float32",
        )
        return cls(**(sizes | changes))
