"""The sizes of the autoencoder."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sisma_jax.common.config import check_choice, check_counts
from sisma_jax.common.errors import InputError

DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of an AutoencoderKL; the defaults are Stable Diffusion's (83,653,863 parameters).

    With a codebook the model is latent diffusion's vector-quantised first stage instead. `fold` and
    `linear_skip` are our additions for small autoencoders trained from scratch in a minute.

    Raises:
      InputError: if a value is out of range, or values contradict each other.
    """

    image_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each resolution, finest first; each further level halves the image."""
    layers_per_block: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    codebook: int = 0
    """Entries of the codebook that latents are quantised to before decoding; 0 for a diagonal
    Gaussian per latent instead."""
    norm_groups: int = 32
    mid_attention: bool = True
    """Single-head self-attention at the coarsest resolution."""
    fold: int = 1
    """Side of the pixel patches folded into channels before the first convolution: 1, 2 or 4."""
    linear_skip: bool = False
    """Add a linear map of patches in parallel to the encoder and to the decoder. The networks then
    start at zero and learn the residual of the linear maps."""
    scaling_factor: float | None = 0.18215
    """Factor that scales latents to a standard deviation of about 1; None if unknown."""
    dtype: str = "float32"
    """Compute type of convolutions and attention; norms and parameters are float32. "auto", which
    only `Autoencoder` takes, is bfloat16 in programs for a GPU or TPU and float32 on a CPU."""

    def __post_init__(self) -> None:
        check_counts(self, "autoencoder", "block_channels", besides=("codebook",))
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
        check_choice(self, "autoencoder", "dtype", DTYPES)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "AutoencoderConfig":
        """Return the config whose fields `values`, read from JSON, gives by name.

        Raises:
          InputError: if a value does not have the type of its field, or is out of range.
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
                what = "a list of whole numbers" if kind is tuple else f"of type {kind.__name__}"
                raise InputError(f"{name} is {value!r}, which is not {what}")
        return cls(**read)

    @property
    def factor(self) -> int:
        """Down-sampling factor: pixels per latent along each side."""
        return self.fold * 2 ** (len(self.block_channels) - 1)

    @property
    def moments(self) -> int:
        """Output channels of the encoder: mean and logvar, or with a codebook the latents."""
        return self.latent_channels if self.codebook else 2 * self.latent_channels

    @classmethod
    def stable_diffusion(cls, **changes: Any) -> "AutoencoderConfig":
        """Stable Diffusion's KL-f8, the architecture of the published sd-vae-ft weights."""
        return cls(**changes)

    @classmethod
    def vq_f4(cls, **changes: Any) -> "AutoencoderConfig":
        """Latent diffusion's VQ-f4, SCA-DM's first stage: 256 pixels become 64 x 64 x 3 latents.

        Its noattn variant is `vq_f4(mid_attention=False)`. Neither scales its latents.
        """
        sizes = dict(
            latent_channels=3, block_channels=(128, 256, 512), codebook=8192, scaling_factor=1.0
        )
        return cls(**(sizes | changes))

    @classmethod
    def tiny(cls, **changes: Any) -> "AutoencoderConfig":
        """Factor 4 for small images on a CPU: 64 x 64 pixels become 16 x 16 x 4 latents.

        The whole factor is folded, so every convolution runs at the latents' resolution, where
        training makes most progress per second on a CPU.
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
