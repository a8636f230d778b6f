"""The configuration of the face-parsing U-Net."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED

NORMS = ("group", "affine")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceParserConfig:
    """Sizes of a `FaceParserUNet`; channels and classes default to those of the U-Net in the
    CelebAMask-HQ repository (1,944,355 parameters).

    Raises:
      InputError: if a value is out of range.
    """

    num_classes: int = 19
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels at each resolution, finest first; each further level halves the image."""
    norm: str = "group"
    """Norm after each 3x3 convolution: "group", group normalisation, for training; or "affine", a
    scale and a shift per channel, for published batch norms at inference."""
    norm_groups: int = 8
    """Number of groups of norm "group"."""
    dtype: str = "float32"
    """Compute type of convolutions; norms, the last convolution and parameters are float32."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= UNLABELLED:  # ids are smaller than it
            raise InputError(
                f"parser.num_classes is {self.num_classes}: set a whole number from 1 to "
                f"{UNLABELLED}"
            )
        if not self.channels or any(type(x) is not int or x < 1 for x in self.channels):
            raise InputError(
                f"parser.channels is {self.channels}: give whole numbers of at least 1, one for "
                "each resolution"
            )
        if self.norm not in NORMS:
            raise InputError(f"parser.norm is {self.norm!r}: choose 'group' or 'affine'")
        if self.norm_groups < 1:
            raise InputError(
                f"parser.norm_groups is {self.norm_groups}: set a whole number of at least 1"
            )
        undivided = [count for count in self.channels if count % self.norm_groups]
        if self.norm == "group" and undivided:
            raise InputError(
                f"parser.norm_groups {self.norm_groups} does not divide the {undivided[0]} of "
                "parser.channels: choose a divisor"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"parser.dtype is {self.dtype!r}: choose 'float32' or 'bfloat16'")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FaceParserConfig":
        """Return the config whose fields `values`, read from JSON, gives by name.

        Raises:
          InputError: if a value does not have the type of its field, or is out of range.
        """
        read = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        for field in dataclasses.fields(cls):
            kind = type(field.default)
            value = read.get(field.name, field.default)
            if type(value) is not kind or (kind is tuple and {*map(type, value)} - {int}):
                what = "a list of whole numbers" if kind is tuple else f"of type {kind.__name__}"
                raise InputError(f"parser.{field.name} is {value!r}, which is not {what}")
        return cls(**read)

    @property
    def factor(self) -> int:
        """Divisor that height and width of images must have."""
        return 2 ** (len(self.channels) - 1)
