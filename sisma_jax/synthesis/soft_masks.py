"""Masks in which classes may overlap and have shares of pixels, for models that take such masks.

A soft mask has one channel per class, from 0 to 1. It is kept as the label maps that it is made of,
which need a twentieth of the memory, and becomes channels on the device, batch by batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, UInt8

Labels = UInt8[np.ndarray, "n H W"]


class Mixed(NamedTuple):
    """Channels of other masks that are mixed into those of n masks."""

    labels: Any
    """The other masks, uint8 label maps (n, H, W)."""
    shares: Any
    """The share of each class's channel that is theirs, float32 (n, k) in [0, 1]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SoftMasks:
    """n masks with channels of other masks mixed in; a pytree with the masks in its rows.

    Fields are NumPy arrays, or JAX arrays in compiled programs.
    """

    labels: Any
    """uint8 label maps (n, H, W), 255 where unlabelled."""
    mixed: tuple[Mixed, ...]
    """What is mixed in, one after the other."""

    def __len__(self) -> int:
        return len(self.labels)

    def channels(self) -> Float[Array, "n H W k"]:
        """The channels, which compiled programs compute."""
        classes = self.mixed[0].shares.shape[1]
        channels = jax.nn.one_hot(self.labels, classes)
        for other in self.mixed:
            shares = other.shares[:, None, None, :]
            channels = (1 - shares) * channels + shares * jax.nn.one_hot(other.labels, classes)
        return channels

    def shown(self) -> Bool[np.ndarray, "n k"]:
        """Which classes have pixels, in channels of more than 0."""
        classes = self.mixed[0].shares.shape[1]
        shown = classes_shown(self.labels, classes)
        for other in self.mixed:
            theirs = classes_shown(other.labels, classes)
            shown = (shown & (other.shares < 1)) | (theirs & (other.shares > 0))
        return shown

    def mix(self, labels: Labels, shares: Float32[np.ndarray, "n k"]) -> "SoftMasks":
        """The masks with channels of others mixed in, too."""
        return dataclasses.replace(self, mixed=(*self.mixed, Mixed(labels, shares)))


def classes_shown(labels: UInt8[np.ndarray, "n H W"], classes: int) -> Bool[np.ndarray, "n k"]:
    """Which classes have pixels in label maps."""
    return np.stack([(labels == k).any((1, 2)) for k in range(classes)], 1)


def shown_in(masks: Labels | SoftMasks, classes: int) -> Bool[np.ndarray, "n k"]:
    """Which classes have pixels in masks of either kind."""
    return masks.shown() if isinstance(masks, SoftMasks) else classes_shown(masks, classes)


def as_input(
    masks: UInt8[Array, "b H W"] | SoftMasks,
) -> UInt8[Array, "b H W"] | Float[Array, "b H W k"]:
    """What a generator encodes: label maps, or the channels of soft masks."""
    return masks.channels() if isinstance(masks, SoftMasks) else masks


def differ(
    labels: UInt8[Array, "b H W"], masks: UInt8[Array, "b H W"] | SoftMasks
) -> Bool[Array, "b H W"]:
    """Where masks are not label maps `labels`."""
    if not isinstance(masks, SoftMasks):
        return labels != masks
    channels = masks.channels()
    return jnp.any(channels != jax.nn.one_hot(labels, channels.shape[-1]), axis=-1)
