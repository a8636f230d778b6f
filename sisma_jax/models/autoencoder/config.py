"""The sizes of the autoencoder."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sisma_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of an AutoencoderKL; the defaults are Stable Diffusion's (83,653,863 parameters).

    With a codebook they are of latent diffusion's vector-quantised first stage instead.
    `fold` and `linear_skip` are ours, for small autoencoders trained from scratch in a minute.
    """

    image_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each resolution, finest first; each further one halves the image."""
    layers_per_block: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    codebook: int = 0
    """Entries that latents are replaced by ahead of decoding; 0 for none, which leaves a diagonal
    Gaussian per latent."""
    norm_groups: int = 32
    mid_attention: bool = True
    """Single-head self-attention at the coarsest resolution."""
    fold: int = 1
    """Pixels along each side that become channels ahead of the first convolution: 1, 2 or 4."""
    linear_skip: bool = False
    """Add a linear map of patches beside the encoder and one beside the decoder. The networks
    then start at zero and learn what the linear maps miss."""
    scaling_factor: float | None = 0.18215
    """What latents are multiplied by so that their standard deviation is about 1; None where the
    weights do not say."""
    dtype: str = "float32"
    """Compute type of convolutions and attention; norms and parameters are float32."""

    def __post_init__(self) -> None:
        if not self.block_channels:
            raise InputError("autoencoder.block_channels is empty: give at least one resolution")
        counts = [
            (field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.type is int and field.name != "codebook"
        ]
        counts += [("block_channels", channels) for channels in self.block_channels]
        for name, value in counts:
            if type(value) is not int or value < 1:
                raise InputError(
                    f"autoencoder.{name} is {value!r}: set a whole number of at least 1"
                )
        if type(self.codebook) is not int or self.codebook < 0:
            raise InputError(
                f"autoencoder.codebook is {self.codebook!r}: set a whole number of entries, or 0 "
                "for no codebook"
            )
        for channels in self.block_channels:
            if channels % self.norm_groups:
                raise InputError(
                    f"autoencoder.norm_groups {self.norm_groups} does not divide the "
                    f"{channels} of autoencoder.block_channels: choose a divisor"
                )
        if self.fold not in (1, 2, 4):
            raise InputError(f"autoencoder.fold is {self.fold}: choose 1, 2 or 4")
        factor = self.scaling_factor
        if factor is not None and not 0 < factor < math.inf:
            raise InputError(f"autoencoder.scaling_factor is {factor!r}: set a positive number")
        if self.linear_skip and self.image_channels * self.factor**2 < self.latent_channels:
            raise InputError(
                f"autoencoder.linear_skip cannot make {self.latent_channels} latent channels of "
                f"patches of {self.factor} x {self.factor} pixels: raise the factor by "
                "autoencoder.fold or block_channels"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"autoencoder.dtype is {self.dtype!r}: choose 'float32' or 'bfloat16'")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "AutoencoderConfig":
        """Return the sizes that a JSON file holds, by field name.

        Raises:
          InputError: if a value is of another type than its field, or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        read = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        factor = read.get("scaling_factor")
        if type(factor) is int:
            read["scaling_factor"] = float(factor)
        for name, value in read.items():
            kind = type(fields[name].default)
            wrong = type(value) is not kind or (kind is tuple and {*map(type, value)} - {int})
            if wrong and (name, value) != ("scaling_factor", None):
                what = "list of whole numbers" if kind is tuple else kind.__name__
                raise InputError(f"{name} is {value!r}, which is no {what}")
        return cls(**read)

    @property
    def factor(self) -> int:
        """Pixels of an image along each side of a latent."""
        return self.fold * 2 ** (len(self.block_channels) - 1)

    @property
    def moments(self) -> int:
        """Channels that the encoder gives: mean and logvar, or with a codebook the latents."""
        return self.latent_channels if self.codebook else 2 * self.latent_channels

    @classmethod
    def stable_diffusion(cls, **changes: Any) -> "AutoencoderConfig":
        """Stable Diffusion's KL-f8, the one behind the published sd-vae-ft weights."""
        return cls(**changes)

    @classmethod
    def vq_f4(cls, **changes: Any) -> "AutoencoderConfig":
        """Latent diffusion's VQ-f4, SCA-DM's first stage: 256 pixels become 64 x 64 x 3 latents.

        Its noattn sibling is `vq_f4(mid_attention=False)`. Neither scales its latents.
        """
        sizes = dict(
            latent_channels=3, block_channels=(128, 256, 512), codebook=8192, scaling_factor=1.0
        )
        return cls(**(sizes | changes))

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
