"""A discriminator of patches at several scales, with spectral normalisation.

At every scale a network predicts for each patch of a picture whether it is from the data (above 0)
or generated (PatchGAN, Isola et al., arXiv 1611.07004); the next scale reads the same input at half
the size (pix2pixHD, Wang et al., arXiv 1711.11585). A network with L layers before its last is

    conv -> [conv -> instance norm] x (L - 1) -> conv

with 4 x 4 convolutions, padded by two zeros at all sides. All but the last have stride 2 and a
leaky ReLU behind them. Beside the picture the first may read its label map, one channel per class;
SPADE (Park et al., arXiv 1903.07291) and CA2-SIS (arXiv 2308.16071) do so.

The kernels W before the instance norms are divided by an estimate of their largest singular value
(Miyato et al., arXiv 1802.05957),

    sigma = v . W u,    where    v <- W u / |W u|,    u <- W^T v / |W^T v|

is one step of the power iteration. As in PyTorch's `spectral_norm` u and v have no gradient. They
are the collection "spectral", which the module only reads:

    spectral = advanced(params, spectral)
    judgements = module.apply({"params": params, "spectral": spectral}, [fake, real], labels)

is one forward pass in training, and the second line alone is one in evaluation. Since the step of
the power iteration needs no pictures, parts of a batch can be judged with the same kernels. GANs
that train like SPADE's judge twice per iteration, for the generator and for the discriminator, and
so take two such steps.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8

from sisma_jax.common.config import check_choice, check_least
from sisma_jax.common.errors import InputError

KERNEL = 4
PADDING = 2
SLOPE = 0.2
"""Slope of the leaky ReLU for negative numbers."""
INSTANCE_NORM_EPSILON = 1e-5
UNIT_EPSILON = 1e-12
"""Least norm that the power iteration divides by; both are PyTorch's defaults."""
GAIN = 0.02
"""Gain of the Xavier initialisation (Glorot and Bengio, 2010), as in pix2pixHD and SPADE."""

xavier = nn.initializers.variance_scaling(GAIN**2, "fan_avg", "normal")
product = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator; the defaults are CA2-SIS's for CelebAMask-HQ.

    At these sizes each scale has 682,049 parameters.

    Raises:
      InputError: if a value is out of range.
    """

    num_classes: int = 19
    """Classes of the label maps that it reads beside pictures; 0 for pictures alone."""
    image_channels: int = 3
    channels: int = 64
    """Channels behind the first convolution; each of the next ones but the last doubles them."""
    layers: int = 3
    """Convolutions of a scale before the last one, each of which halves the picture."""
    scales: int = 2
    dtype: str | None = None
    """Compute type of the convolutions: "float32", "bfloat16", or None for that of the pictures,
    float32 at the least. Norms and new parameters are float32."""

    def __post_init__(self) -> None:
        check_least(self, "discriminator", 0, "num_classes")
        check_least(self, "discriminator", 1, "image_channels", "channels", "layers", "scales")
        if self.dtype is not None:
            check_choice(self, "discriminator", "dtype", ("float32", "bfloat16"))


class Judgement(NamedTuple):
    """What the scales of a discriminator say about a batch of pictures, the finest first."""

    features: tuple[tuple[Float[Array, "b _ _ _"], ...], ...]
    """Activations of all layers but the last, of each scale."""
    predictions: tuple[Float[Array, "b _ _ 1"], ...]
    """One number per patch, at least float32, of each scale."""


class PatchDiscriminator(nn.Module):
    """Judges pictures. See the module docstring."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(
        self,
        batches: Sequence[Float[Array, "b h w c"]],
        labels: UInt8[Array, "b H W"] | None = None,
    ) -> list[Judgement]:
        """Judge batches of pictures with the same kernels.

        Each batch is convolved by itself, so those that need no gradient take no part in the
        backward pass. The label maps are convolved once for all batches.

        Args:
          batches: pictures in [-1, 1], such as [generated ones, those of the data].
          labels: their label maps, the same for all batches; values that are no class (255:
            unlabelled) have no channel. None if `config.num_classes` is 0.

        Returns:
          One judgement for each batch.

        Raises:
          InputError: if label maps are missing or not expected, or have another size.
        """
        c = self.config
        check_labels(c, batches[0], labels)
        least = np.promote_types(batches[0].dtype, np.float32)
        dtype = least if c.dtype is None else jnp.dtype(c.dtype)
        images, classes = [batch.astype(least) for batch in batches], None
        if labels is not None:
            classes = jax.nn.one_hot(labels, c.num_classes, dtype=dtype)
        scales = []
        for i in range(c.scales):
            if i:
                images = [halved(x) for x in images]
                classes = None if classes is None else halved(classes)
            scales.append(Scale(c, dtype, name=f"scale_{i}")(images, classes))
        return [
            Judgement(
                features=tuple(features for features, _ in scale),
                predictions=tuple(predictions for _, predictions in scale),
            )
            for scale in zip(*scales, strict=True)
        ]


class Scale(nn.Module):
    """The network of one scale: batches -> (features of the layers, predictions) of each."""

    config: DiscriminatorConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Sequence[Float[Array, "b h w c"]], classes: Float[Array, "b h w k"] | None
    ) -> list[tuple[tuple[Array, ...], Array]]:
        c = self.config
        features: list[list[Array]] = [[] for _ in images]
        h = list(images)
        for i in range(c.layers):
            conv = PatchConv(c.channels * 2**i, 2, bool(i), self.dtype, name=f"conv_{i}")
            h = conv(h, None if i else classes)
            h = [nn.leaky_relu(instance_norm(x) if i else x, SLOPE) for x in h]
            for found, x in zip(features, h, strict=True):
                found.append(x)
        h = PatchConv(1, 1, False, self.dtype, name=f"conv_{c.layers}")(h)
        least = np.promote_types(self.dtype, np.float32)
        return [(tuple(found), x.astype(least)) for found, x in zip(features, h, strict=True)]


class PatchConv(nn.Module):
    """A convolution of several batches with the same kernel.

    Attributes:
      channels: output channels.
      stride: its stride.
      normalised: spectral normalisation instead of a bias.
      dtype: compute type.
    """

    channels: int
    stride: int
    normalised: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        batches: Sequence[Float[Array, "b h w c"]],
        shared: Float[Array, "b h w k"] | None = None,
    ) -> list[Float[Array, "b _ _ channels"]]:
        """Convolve batches, whose channels follow the `shared` ones that all of them have.

        A convolution is linear in its channels, so the shared ones are convolved once.
        """
        first = 0 if shared is None else shared.shape[-1]
        inputs = first + batches[0].shape[-1]
        kernel = self.param("kernel", xavier, (KERNEL, KERNEL, inputs, self.channels), jnp.float32)
        if self.normalised:
            kernel = kernel / self.singular_value(kernel)
        kernel = kernel.astype(self.dtype)

        def convolved(x: Array, kernel: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x.astype(self.dtype),
                kernel,
                (self.stride, self.stride),
                [(PADDING, PADDING)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        out = [convolved(x, kernel[:, :, first:]) for x in batches]
        if shared is not None:
            of_shared = convolved(shared, kernel[:, :, :first])
            out = [x + of_shared for x in out]
        if self.normalised:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return [x + bias.astype(self.dtype)[None, None, None] for x in out]

    def singular_value(self, kernel: Float[Array, "4 4 i o"]) -> Float[Array, ""]:
        """sigma of the module docstring; W has a row for each of the kernel's inputs."""
        rows = kernel.size // self.channels
        normal = lambda count: jax.random.normal(self.make_rng("params"), (count,), jnp.float32)
        new = lambda count: unit(normal(count))
        u = self.variable("spectral", "u", new, self.channels).value
        v = self.variable("spectral", "v", new, rows).value
        u, v = jax.lax.stop_gradient((u, v))
        return product(v, product(as_matrix(kernel), u))


def check_labels(config: DiscriminatorConfig, images: Array, labels: Array | None) -> None:
    """Raise InputError unless a discriminator can judge these images with these label maps."""
    if labels is None and config.num_classes:
        raise InputError(
            f"the discriminator reads label maps of {config.num_classes} classes beside pictures, "
            "but none are given: give them, or set discriminator.num_classes to 0"
        )
    if labels is None:
        return
    if not config.num_classes:
        raise InputError(
            "the discriminator reads pictures alone, but label maps are given: leave them out, or "
            "set discriminator.num_classes"
        )
    if labels.shape != images.shape[:3]:
        raise InputError(
            f"the discriminator has pictures of shape {images.shape} and label maps of shape "
            f"{labels.shape}: give each picture one label map of its size"
        )


def advanced(params: Any, spectral: Any) -> Any:
    """Return the collection "spectral" after one step of the power iteration, without a gradient.

    Args:
      params: parameters of a `PatchDiscriminator`.
      spectral: its u and v; v has no influence on the result.
    """
    vectors, kernels = flatten_dict(spectral), flatten_dict(jax.lax.stop_gradient(params))
    new = {}
    for *module, leaf in vectors:
        if leaf == "u":
            matrix = as_matrix(kernels[*module, "kernel"])
            new[*module, "v"] = v = unit(product(matrix, vectors[*module, "u"]))
            new[*module, "u"] = unit(product(v, matrix))
    return unflatten_dict(new)


def as_matrix(kernel: Float[Array, "h w i o"]) -> Float[Array, "rows o"]:
    return kernel.reshape(-1, kernel.shape[-1])


def unit(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return x / jnp.maximum(jnp.linalg.norm(x), UNIT_EPSILON)


def instance_norm(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalise each channel of each picture, without scale and shift, in float32 at the least."""
    h = x.astype(np.promote_types(x.dtype, np.float32))
    h = h - jnp.mean(h, (1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(h), (1, 2), keepdims=True)
    return (h * jax.lax.rsqrt(variance + INSTANCE_NORM_EPSILON)).astype(x.dtype)


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Means over 3 x 3 windows with stride 2; at the border over the pixels that are there."""
    sums = nn.pool(x, 0.0, jax.lax.add, (3, 3), (2, 2), [(1, 1), (1, 1)])
    rows, columns = (pixels_of_windows(side) for side in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns), x.dtype)[None, :, :, None]


def pixels_of_windows(side: int) -> np.ndarray:
    """How many pixels along a side are in each of the windows of `halved`."""
    centres = np.arange(0, side, 2)
    return np.minimum(centres + 2, side) - np.maximum(centres - 1, 0)
