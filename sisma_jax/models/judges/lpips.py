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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.autoencoder.published import to_flax_layout, to_pytorch_layout
from sisma_jax.models.weights import listed, read_tensors

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean (SHIFT) and standard deviation of ImageNet's colours in [-1, 1]."""
NORM_EPSILON = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """Convolutions with a ReLU each; LPIPS compares the last activations."""

    channels: int
    convs: int = 1
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int | None = None
    """Window of the stride-2 max pooling before the convolutions; None for no pooling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """The part of a torchvision network that LPIPS uses."""

    name: str
    file: str
    """File name of torchvision's weights."""
    linear_file: str
    """File of the weights w of equation (1) in the Python package lpips."""
    levels: tuple[Level, ...]

    def first(self, levels: int) -> "Backbone":
        """The part of this network that ends with its finest `levels` levels.

        Raises:
          InputError: if the network does not have as many, or `levels` is not positive.
        """
        if not 1 <= levels <= len(self.levels):
            raise InputError(
                f"{levels} levels of {self.name} cannot be compared: choose 1 to {len(self.levels)}"
            )
        return dataclasses.replace(self, levels=self.levels[:levels])

    @property
    def smallest(self) -> int:
        """Smallest side of an image in pixels; it leaves one pixel at the last level."""
        side = 1
        for level in reversed(self.levels):
            for _ in range(level.convs):
                side = (side - 1) * level.stride + level.size - 2 * level.padding
            if level.pool:
                side = (side - 1) * 2 + level.pool
        return side


ALEXNET = Backbone(
    name="AlexNet",
    file="alexnet-owt-7be5be79.pth",
    linear_file="weights/v0.1/alex.pth",
    levels=(
        Level(channels=64, size=11, stride=4, padding=2),
        Level(channels=192, size=5, padding=2, pool=3),
        Level(channels=384, pool=3),
        Level(channels=256),
        Level(channels=256),
    ),
)
VGG16 = Backbone(
    name="VGG-16",
    file="vgg16-397923af.pth",
    linear_file="weights/v0.1/vgg.pth",
    levels=(
        Level(channels=64, convs=2),
        Level(channels=128, convs=2, pool=2),
        Level(channels=256, convs=3, pool=2),
        Level(channels=512, convs=3, pool=2),
        Level(channels=512, convs=3, pool=2),
    ),
)
BACKBONES = (ALEXNET, VGG16)


class LpipsNet(nn.Module):
    """Maps images to the weighted features of every level.

    Parameters have the published names, with "_" for the "." before an index. In the published
    files w of equation (1) is the kernel of a 1x1 convolution.
    """

    backbone: Backbone

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        shift, deviation = (jnp.array(colour).reshape(1, 1, 1, 3) for colour in (SHIFT, SCALE))
        x = (images - shift) / deviation
        index, features = 0, []  # torchvision also counts ReLUs and pools
        for number, level in enumerate(self.backbone.levels):
            if level.pool:
                x = nn.max_pool(x, (level.pool, level.pool), strides=(2, 2))
                index += 1
            for _ in range(level.convs):
                conv = nn.Conv(
                    level.channels,
                    (level.size, level.size),
                    strides=level.stride,
                    padding=level.padding,
                    precision=jax.lax.Precision.HIGHEST,
                    name=f"features_{index}",
                )
                x = nn.relu(conv(x))
                index += 2
            weight = self.param(f"lin{number}", nn.initializers.ones, (1, 1, level.channels, 1))
            # The gradient of the root is not finite where all channels are 0; that of `nn.relu`,
            # which it passes next, is a selection that replaces it by 0 there.
            norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
            pixels = x.shape[1] * x.shape[2]
            scale = jnp.sqrt(weight / pixels).reshape(1, 1, 1, -1)
            features.append(scale * (x / (norm + NORM_EPSILON)))
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
    tensors = read_tensors(backbone_path, without_classifier)
    backbone = recognised(backbone_path, tensors, backbones, linear=False)
    if linear_path is None:
        shapes = published_shapes(backbone).items()
        tensors |= {name: np.ones(shape, np.float32) for name, shape in shapes if is_linear(name)}
    else:
        tensors |= read_linear(linear_path, backbone, backbone_path, backbones)
    if levels is not None:
        backbone = backbone.first(levels)
    params = {
        name: jnp.asarray(to_flax_layout(tensors[pytorch_name(name)]))
        for name in parameter_shapes(backbone)
    }
    return Lpips(backbone, unflatten_dict(params, sep="/"))


def read_linear(
    linear_path: str | os.PathLike,
    backbone: Backbone,
    backbone_path: str | os.PathLike,
    backbones: Sequence[Backbone],
) -> dict[str, np.ndarray]:
    """Read the weights w for `backbone`; arguments and errors are those of `load_lpips`."""
    linear = read_tensors(linear_path)
    linear_of = recognised(linear_path, linear, backbones, linear=True)
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


def without_classifier(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("classifier.")]


def is_linear(name: str) -> bool:
    """Whether this published tensor holds weights w of equation (1)."""
    return name.startswith("lin")


def recognised(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    backbones: Sequence[Backbone],
    *,
    linear: bool,
) -> Backbone:
    """Return that of the backbones with exactly these tensors, or weights w if `linear`.

    Raises:
      InputError: if there is no such backbone.
    """
    present = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    for backbone in backbones:
        shapes = published_shapes(backbone)
        if present == {
            name: (shape, np.float32) for name, shape in shapes.items() if is_linear(name) == linear
        }:
            return backbone
    names = " or ".join(each.name for each in backbones)
    if linear:
        what, package = f"LPIPS' weights for {names}", "the Python package lpips"
        files = (each.linear_file for each in backbones)
    else:
        what, package = f"torchvision's {names} in float32", "torchvision"
        files = (each.file for each in backbones)
    raise InputError(
        f"{path} does not hold {what} but {listed(present) or 'nothing'}: convert "
        f"{' or '.join(files)} of {package} to safetensors"
    )


def published_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of both published files by name, without the classifier."""
    return {
        pytorch_name(name): jax.eval_shape(to_pytorch_layout, leaf).shape
        for name, leaf in parameter_shapes(backbone).items()
    }


def parameter_shapes(backbone: Backbone) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of each parameter by its path, without computing it."""
    images = jnp.zeros((1, backbone.smallest, backbone.smallest, 3))
    tree = jax.eval_shape(LpipsNet(backbone).init, jax.random.key(0), images)
    return flatten_dict(tree["params"], sep="/")


def pytorch_name(name: str) -> str:
    layer, _, leaf = name.partition("/")
    if is_linear(layer):
        return f"{layer}.model.1.weight"
    return f"{layer.replace('_', '.')}.{'bias' if leaf == 'bias' else 'weight'}"
