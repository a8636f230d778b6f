"""LPIPS, version 0.1: a perceptual distance of images, computed with AlexNet or VGG-16.

Zhang et al., arXiv 1801.03924. With y_l(a) the activations of level l, divided by their norm over
channels at each pixel, and w_l >= 0 a learned weight per channel,

    d(a, b) = sum_l mean_pixels sum_channels w_l (y_l(a) - y_l(b))^2.              (1)

So d is the squared Euclidean distance of the features sqrt(w_l / pixels) y_l, which are computed
once per image, however many images it is compared with.

With w_l = 1, d is the sum over levels of the mean over pixels of 2 - 2 cos, where cos is that of
the angle between both images' activations at a pixel (where all activations of an image are 0, its
y is 0, too). Zhang et al. also report this distance, as that of the network without learned
weights.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.judges.backbones import (
    ALEXNET,
    VGG16,
    Backbone,
    activations,
    are_exactly,
    convolution_parameters,
    convolution_shapes,
    described,
    read_convolutions,
)
from sisma_jax.models.state_dicts import to_flax_layout
from sisma_jax.models.weights import read_tensors

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean (SHIFT) and standard deviation of ImageNet's colours in [-1, 1]."""
NORM_EPSILON = 1e-10


BACKBONES = (ALEXNET, VGG16)


class LpipsNet(nn.Module):
    """Maps images to the weighted features of every level.

    It compares the last activations of a level. In the published files w of equation (1) is the
    kernel of a 1x1 convolution.
    """

    backbone: Backbone

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        shift, deviation = (jnp.array(colour).reshape(1, 1, 1, 3) for colour in (SHIFT, SCALE))
        x = (images - shift) / deviation
        features = []
        levels = activations(self.backbone, x, jax.lax.Precision.HIGHEST)
        for number, (*_, last) in enumerate(levels):
            weight = self.param(f"lin{number}", nn.initializers.ones, (1, 1, last.shape[-1], 1))
            # The gradient of the root is not finite where all channels are 0; that of `nn.relu`,
            # which it passes next, is a selection that replaces it by 0 there.
            norm = jnp.sqrt(jnp.sum(jnp.square(last), axis=-1, keepdims=True))
            pixels = last.shape[1] * last.shape[2]
            scale = jnp.sqrt(weight / pixels).reshape(1, 1, 1, -1)
            features.append(scale * (last / (norm + NORM_EPSILON)))
        return tuple(features)


@dataclasses.dataclass(frozen=True)
class Lpips:
    """LPIPS with its parameters.

    A pytree whose leaves are the parameters: pass it to jitted functions as an argument.
    """

    backbone: Backbone
    params: Any

    @jax.jit
    def features(
        self, images: Num[Array | np.ndarray, "n h w 3"]
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Return one float32 array per level, whose squared Euclidean distances sum to LPIPS.

        At 256 x 256 pixels they take 2.6 MB per image with AlexNet, 32 MB with VGG-16.

        Args:
          images: uint8, or floats in [-1, 1].

        Raises:
          InputError: if the images are smaller than `backbone.smallest`, or neither uint8 nor
            floats.
        """
        height, width = images.shape[1:3]
        smallest = self.backbone.smallest
        if min(height, width) < smallest:
            raise InputError(
                f"images of {height} x {width} pixels are too small for LPIPS with "
                f"{self.backbone.name}: give at least {smallest} along each side"
            )
        return LpipsNet(self.backbone).apply({"params": self.params}, in_unit_range(images))

    @jax.jit
    def distance(
        self, a: Num[Array | np.ndarray, "n h w 3"], b: Num[Array | np.ndarray, "..."]
    ) -> Float[Array, " n"]:
        """Return LPIPS of each pair of images, 0 where they are equal.

        Args:
          a, b: uint8, or floats in [-1, 1].

        Raises:
          InputError: if the shapes differ, or as `features` does.
        """
        if a.shape != b.shape:
            raise InputError(
                f"images of shapes {a.shape} and {b.shape} cannot be compared: give pairs"
            )
        both = self.features(jnp.concatenate([in_unit_range(a), in_unit_range(b)]))
        return squared_distance([level[: len(a)] for level in both], [x[len(a) :] for x in both])

    @jax.jit
    def pairwise(self, images: Num[Array | np.ndarray, "k h w 3"]) -> Float[Array, "k k"]:
        """Return the LPIPS of all pairs of images: symmetric, with zeros on the diagonal.

        It needs memory for the features of k images and for one comparison of k images with one.

        Args:
          images: uint8, or floats in [-1, 1].

        Raises:
          InputError: as `features` does.
        """
        features = self.features(images)

        def row(one: tuple[Array, ...]) -> Array:
            return squared_distance(features, [level[None] for level in one])

        return jax.lax.map(row, features)


jax.tree_util.register_dataclass(Lpips, data_fields=["params"], meta_fields=["backbone"])


def in_unit_range(images: Num[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Return uint8 images, or floats in [-1, 1], as float32 in [-1, 1].

    Raises:
      InputError: if the dtype is neither.
    """
    if images.dtype == jnp.uint8:
        return to_float(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"LPIPS of {images.dtype} images: give uint8, or floats in [-1, 1]")
    return images.astype(jnp.float32)


def squared_distance(a: Iterable[Array], b: Iterable[Array]) -> Float[Array, " n"]:
    """Squared Euclidean distance over all levels; either side may have a single row.

    It is computed from differences, since expanding the square would cancel for similar images.
    """
    levels = (p - jnp.broadcast_to(q, p.shape) for p, q in zip(a, b, strict=True))
    return sum(jnp.sum(jnp.square(level), axis=(1, 2, 3)) for level in levels)


def load_lpips(
    backbone_path: str | os.PathLike,
    linear_path: str | os.PathLike | None,
    *,
    backbones: Sequence[Backbone] = BACKBONES,
    levels: int | None = None,
) -> Lpips:
    """Read LPIPS; the backbone is recognised by its tensors.

    Args:
      backbone_path: torchvision's AlexNet or VGG-16, `Backbone.file`, converted to safetensors
        (`weights.RECIPE`). Its classifier is not read.
      linear_path: `Backbone.linear_file` of the Python package lpips, converted likewise. Beware of
        its v0.0 files, which have the same names and shapes but other weights. None for w = 1.
      backbones: the networks that are accepted.
      levels: number of levels that are compared, the finest first; None for all.

    Raises:
      InputError: if a file is missing, pickled, damaged or of another network, the two do not
        belong together, a weight w is negative, or the network has fewer levels.
    """
    backbone, tensors = read_convolutions(backbone_path, backbones)
    if linear_path is None:
        linear = {
            name: np.ones(shape, np.float32) for name, shape in linear_shapes(backbone).items()
        }
    else:
        linear = read_linear(linear_path, backbone, backbone_path, backbones)
    if levels is not None:
        backbone = backbone.first(levels)
    weights = {
        f"lin{number}": jnp.asarray(to_flax_layout(linear[linear_name(number)]))
        for number in range(len(backbone.levels))
    }
    return Lpips(backbone, convolution_parameters(backbone, tensors) | weights)


def read_linear(
    linear_path: str | os.PathLike,
    backbone: Backbone,
    backbone_path: str | os.PathLike,
    backbones: Sequence[Backbone],
) -> dict[str, np.ndarray]:
    """Read the weights w for `backbone`; arguments and errors are those of `load_lpips`."""
    linear = read_tensors(linear_path)
    linear_of = next((one for one in backbones if are_exactly(linear, linear_shapes(one))), None)
    if linear_of is None:
        raise InputError(
            f"{linear_path} does not hold LPIPS' weights for "
            f"{' or '.join(each.name for each in backbones)} but {described(linear)}: convert "
            f"{' or '.join(each.linear_file for each in backbones)} of the Python package lpips to "
            "safetensors"
        )
    if linear_of != backbone:
        raise InputError(
            f"{linear_path} holds LPIPS' weights for {linear_of.name}, but {backbone_path} holds "
            f"{backbone.name}: give {backbone.linear_file} of the Python package lpips, or "
            f"torchvision's {linear_of.file}"
        )
    if any((tensor < 0).any() for tensor in linear.values()):
        raise InputError(
            f"{linear_path} holds negative weights, which LPIPS does not allow: convert "
            f"{backbone.linear_file} of the Python package lpips again"
        )
    return linear


def linear_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published weights w by name."""
    return {
        linear_name(number): (1, level.channels, 1, 1)
        for number, level in enumerate(backbone.levels)
    }


def linear_name(level: int) -> str:
    return f"lin{level}.model.1.weight"


def is_linear(name: str) -> bool:
    """Whether this published tensor holds weights w of equation (1)."""
    return name.startswith("lin")


def published_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of both published files by name, without the classifier."""
    return convolution_shapes(backbone) | linear_shapes(backbone)
