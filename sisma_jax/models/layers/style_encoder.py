"""The multi-resolution style encoder of SCA-DM and CA2-SIS: a style token per class of a face.

    image -> convolution -> grouped convolutions, down -> grouped convolutions, up, with skips
                                                          |  at each of L levels:
             mean over the class's pixels -> linear map -> tanh -> D features of the class

Groups are classes: each class has a small network of its own that sees the whole picture and whose
features are averaged over the class's pixels at every level. The concatenated L x D features of a
class are its token (arXiv 2403.12743, section 3; arXiv 2308.16071 has the same encoder with fewer
levels; layers and sizes as published).

`grouping` says how the way up joins its features with the skips of the way down. "separate" joins
them class by class. "published" is what the code of both papers does and what published weights
need: all classes' features stand ahead of all classes' skips, and the next convolution's group g
reads numbers 2g and 2g + 1 of this list of 2k. So the first group after a skip reads classes 0 and
1, and a class's token depends on what the networks of other classes have read. Parameters are the
same for both.

The token of a class without pixels is tanh of the last maps' biases, whatever the image shows: a
learned token for "no style". So removing a label from the reference's map (255, unlabelled) leaves
the style of that class to the noise, and a map of 255 everywhere is no reference at all.

`colours` is our addition for encoders trained in minutes: a linear map shared by all classes adds
the mean colour of a class's pixels to its finest features. The norms hide absolute colours, which
the layers between take long to learn to keep.

Shape letters: k classes, b batch, c channels of one class. Classes come first, so each step is a
batch of matrix products, one per class.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.models.layers.wide import wide

EPSILON = 1e-5
"""Epsilon of the norms and of the mean over a class's pixels, as published (PyTorch's default)."""

OF_ALL_CLASSES = ("conv_in", "colour")
"""Linear maps that all classes share; the kernels of the others have a leading axis of classes."""

GROUPINGS = ("separate", "published")
"""See the module docstring."""

per_class = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))


def check_levels(levels: int, image_size: int) -> None:
    """Raise InputError unless `image_size` can be halved as often as the style encoder does."""
    if image_size % 2 ** (levels + 1):
        raise InputError(
            f"model.style_levels is {levels}, which halves images of {image_size} pixels "
            f"{levels + 1} times: choose fewer levels"
        )


def check_grouping(grouping: str) -> None:
    """Raise InputError unless the grouping is known."""
    if grouping not in GROUPINGS:
        raise InputError(
            f"model.style_grouping is {grouping!r}: choose one of {', '.join(GROUPINGS)}"
        )


class ClassConv3x3(nn.Module):
    """A 3x3 convolution of each class's channels, with zero padding.

    It is three matrix products, one for each row of the window. XLA's grouped convolution was 17 to
    80 times slower on a CPU.
    """

    channels: int
    stride: int
    dtype: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "k b h w c"]) -> Float[Array, "k b _ _ channels"]:
        classes, _, height, width, inputs = x.shape
        dtype = self.dtype or x.dtype
        kernel = self.param("kernel", per_class, (classes, 3, 3, inputs, self.channels))
        bias = self.param("bias", nn.initializers.zeros, (classes, self.channels))
        kernel, bias = kernel.astype(dtype), bias.astype(dtype)
        x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        columns = [x[:, :, :, j : j + width : self.stride] for j in range(3)]
        rows = jnp.concatenate(columns, axis=-1)
        kernel = kernel.reshape(classes, 3, 3 * inputs, self.channels)
        out = bias[:, None, None, None]
        for i in range(3):
            seen = rows[:, :, i : i + height : self.stride]
            out = out + jnp.einsum("kbhwi,kio->kbhwo", seen, kernel[:, i])
        return out


class ClassNorm(nn.Module):
    """Normalises each class's features over positions and channels, in float32 (float64 for these);
    then ReLU."""

    @nn.compact
    def __call__(self, x: Float[Array, "k b h w c"]) -> Float[Array, "k b h w c"]:
        shape = (x.shape[0], x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)[:, None, None, None]
        bias = self.param("bias", nn.initializers.zeros, shape)[:, None, None, None]
        h = x.astype(wide(x.dtype))
        mean = jnp.mean(h, (2, 3, 4), keepdims=True)
        variance = jnp.mean(jnp.square(h - mean), (2, 3, 4), keepdims=True)
        h = (h - mean) * jax.lax.rsqrt(variance + EPSILON)
        return nn.relu(h * scale + bias).astype(x.dtype)


class ClassDense(nn.Module):
    """A linear map of each class's features, in their type."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "k b c"]) -> Float[Array, "b k features"]:
        classes, _, inputs = x.shape
        kernel = self.param("kernel", per_class, (classes, inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (classes, self.features))
        return jnp.einsum("kbi,kio->bko", x, kernel) + bias[None]


class StyleEncoder(nn.Module):
    """Maps reference images and their label maps to style tokens. See the module docstring.

    Attributes:
      num_classes: k.
      channels: channels per class after the first convolution; each halving of the image doubles
        them.
      levels: L; the image is halved L + 1 times and doubled L times.
      features: D, features per class and level.
      dtype: compute type of the convolutions; None for that of images and parameters.
      colours: also encode mean colours.
      grouping: "separate" or "published"; see the module docstring.
    """

    num_classes: int
    channels: int
    levels: int
    features: int
    dtype: str | None
    colours: bool = False
    grouping: str = "separate"

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Float[Array, "b k token"]:
        """Return tokens in (-1, 1), L x D features per class, coarsest level first.

        They are float32, or float64 for images and parameters of float64 without a `dtype`.

        Args:
          images: images in [-1, 1]; sides are multiples of 2 ** (levels + 1).
          labels: class ids of the images' pixels; other values (255) belong to no class.
        """
        classes, dtype = self.num_classes, self.dtype
        width = lambda halvings: self.channels * 2**halvings
        x = nn.Conv(classes * self.channels, (3, 3), dtype=dtype, name="conv_in")(images)
        x = ClassNorm(name="norm_in")(rearrange(x, "b h w (k c) -> k b h w c", k=classes))
        coarser = []
        for i in range(1, self.levels + 2):
            x = ClassConv3x3(width(i), 2, dtype, name=f"down_{i}_conv")(x)
            x = ClassNorm(name=f"down_{i}_norm")(x)
            coarser.append(x)
        coarser.pop()
        tokens = []
        for i in reversed(range(1, self.levels + 1)):
            x = ClassConv3x3(width(i), 1, dtype, name=f"up_{i}_conv")(doubled(x))
            x = ClassNorm(name=f"up_{i}_norm")(x)
            token = ClassDense(self.features, name=f"out_{i}")(class_means(x, labels))
            if self.colours and i == 1:
                add = nn.Dense(self.features, use_bias=False, name="colour")
                token = token + add(class_colours(images, labels, classes))
            tokens.append(jnp.tanh(token))
            x = joined(x, coarser.pop(), self.grouping)
        return jnp.concatenate(tokens, axis=-1)


def make_style_encoder(config: Any, grouping: str = "separate") -> StyleEncoder:
    """The style encoder of a model with the configuration `config`."""
    return StyleEncoder(
        num_classes=config.num_classes,
        channels=config.style_channels,
        levels=config.style_levels,
        features=config.style_features,
        dtype=config.dtype,
        colours=config.style_colours,
        grouping=grouping,
    )


def joined(
    x: Float[Array, "k b h w c"], skip: Float[Array, "k b h w c"], grouping: str
) -> Float[Array, "k b h w 2*c"]:
    """The input of each class's next convolution: see the module docstring."""
    if grouping == "separate":
        return jnp.concatenate([x, skip], axis=-1)
    units = jnp.concatenate([x, skip])
    return rearrange(units, "(k two) b h w c -> k b h w (two c)", two=2)


def doubled(x: Float[Array, "k b h w c"]) -> Float[Array, "k b 2*h 2*w c"]:
    """Double the image by linear interpolation."""
    k, b, h, w, c = x.shape
    return jax.image.resize(x, (k, b, 2 * h, 2 * w, c), "linear")


def no_style(encoder: StyleEncoder, size: int) -> Float[Array, "1 k token"]:
    """The tokens of no reference: those of an unlabelled map, whatever the image of `size` pixels.

    Call it where `encoder` can be called, in a bound module.
    """
    nothing = jnp.full((1, size, size), UNLABELLED, jnp.uint8)
    return encoder(jnp.zeros((1, size, size, 3)), nothing)


def class_means(
    x: Float[Array, "k b h w c"], labels: UInt8[Array, "b H W"]
) -> Float[Array, "k b c"]:
    """The mean of each class's features over its pixels; 0 for a class without pixels.

    It is float32, or float64 for features of float64.
    Each position of `x` takes the first of the labels that it covers.
    """
    rows, columns = labels.shape[1] // x.shape[2], labels.shape[2] // x.shape[3]
    kind = wide(x.dtype)
    own = jax.nn.one_hot(labels[:, ::rows, ::columns], len(x), axis=0, dtype=kind)
    total = jnp.einsum("kbhwc,kbhw->kbc", x.astype(kind), own)
    return total / (jnp.sum(own, (2, 3)) + EPSILON)[..., None]


def class_colours(
    images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"], num_classes: int
) -> Float[Array, "b k 4"]:
    """The mean colour of each class's pixels, followed by 1; zeros for a class without pixels."""
    own = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    count = jnp.sum(own, (1, 2))[..., None]
    mean = jnp.einsum("bhwc,bhwk->bkc", images, own) / jnp.maximum(count, 1.0)
    return jnp.concatenate([mean, jnp.minimum(count, 1.0)], axis=-1)


def without(labels: UInt8[Array, "b H W"], dropped: Bool[Array, "b k"]) -> UInt8[Array, "b H W"]:
    """The label maps with the pixels of `dropped` classes set to `UNLABELLED`."""
    padded = jnp.pad(dropped, ((0, 0), (0, 256 - dropped.shape[1])))
    gone = jax.vmap(lambda row, of: row[of.astype(jnp.int32)])(padded, labels)
    return jnp.where(gone, jnp.uint8(UNLABELLED), labels)


def class_shares(
    labels: UInt8[Array, "b H W"], grid: tuple[int, int], num_classes: int
) -> Float[Array, "b l k"]:
    """The share of each class among the pixels of each cell of the grid, float32."""
    b, height, width = labels.shape
    rows, columns = grid
    cells = labels.reshape(b, rows, height // rows, columns, width // columns)
    shares = jnp.mean(jax.nn.one_hot(cells, num_classes, dtype=jnp.float32), (2, 4))
    return shares.reshape(b, rows * columns, num_classes)
