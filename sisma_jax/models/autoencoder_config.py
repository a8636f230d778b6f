"""The sizes of the autoencoder."""

import dataclasses
from typing import Any

from sisma_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of an AutoencoderKL; the defaults are Stable Diffusion's (83,653,863 parameters).

    `fold` and `linear_skip` are ours, for small autoencoders trained from scratch in a minute.
    """

    image_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each resolution, finest first; each further one halves the image."""
    layers_per_block: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    norm_groups: int = 32
    mid_attention: bool = True
    """Single-head self-attention at the coarsest resolution."""
    fold: int = 1
    """Pixels along each side that become channels ahead of the first convolution: 1, 2 or 4."""
    linear_skip: bool = False
    """Add a linear map of patches beside the encoder and one beside the decoder. The networks
    then start at zero and learn what the linear maps miss."""
    scaling_factor: float = 0.18215
    """What latents are multiplied by so that their standard deviation is about 1."""
    dtype: str = "float32"
    """Compute type of convolutions and attention; norms and parameters are float32."""

    def __post_init__(self) -> None:
        if not self.block_channels:
            raise InputError("autoencoder.block_channels is empty: give at least one resolution")
        counts = [
            (field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.type is int
        ]
        counts += [("block_channels", channels) for channels in self.block_channels]
        for name, value in counts:
            if type(value) is not int or value < 1:
                raise InputError(
                    f"autoencoder.{name} is {value!r}: set a whole number of at least 1"
                )
        for channels in self.block_channels:
            if channels % self.norm_groups:
                raise InputError(
                    f"autoencoder.norm_groups {self.norm_groups} does not divide the "
                    f"{channels} of autoencoder.block_channels: choose a divisor"
                )
        if self.fold not in (1, 2, 4):
            raise InputError(f"autoencoder.fold is {self.fold}: choose 1, 2 or 4")
        if not 0 < self.scaling_factor < float("inf"):
            raise InputError(
                f"autoencoder.scaling_factor is {self.scaling_factor}: set a positive number"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"autoencoder.dtype is {self.dtype!r}: choose 'float32' or 'bfloat16'")

    @property
    def factor(self) -> int:
        """Pixels of an image along each side of a latent."""
        return self.fold * 2 ** (len(self.block_channels) - 1)

    @classmethod
    def stable_diffusion(cls, **changes: Any) -> "AutoencoderConfig":
        """Stable Diffusion's KL-f8, the one behind the published sd-vae-ft weights."""
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> "AutoencoderConfig":
        """Factor 4 for small images on a CPU: 64 x 64 pixels become 16 x 16 x 4 latents.

        Folding all of the factor keeps every convolution at the latents' resolution, where a CPU
        learns most per second.
        """
        sizes = dict(
            block_channels=(64,),
            layers_per_block=1,
            norm_groups=8,
            mid_attention=False,
            fold=4,
            linear_skip=True,
            scaling_factor=1.0,
        )
        return cls(**(sizes | changes))
