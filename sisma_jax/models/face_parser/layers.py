"""Layers of the face parsers.

Submodules are named as in the published networks, with "_" for the "." before an index, so that a
parameter's name determines the tensors it is converted from (`published`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from sisma_jax.common.errors import InputError


def conv(
    channels: int,
    name: str,
    *,
    size: int = 3,
    stride: int = 1,
    bias: bool = True,
    dtype: str = "float32",
) -> nn.Conv:
    """A convolution with zero padding of `size // 2`, like PyTorch's.

    float32 is exact even where TF32 is the default.
    """
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias,
        dtype=jnp.dtype(dtype),
        precision=precision(dtype),
        name=name,
    )


def precision(dtype: str) -> jax.lax.Precision:
    return jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT


class Affine(nn.Module):
    """scale * x + shift per channel in float32: a batch norm with fixed statistics."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        shift = self.param("shift", nn.initializers.zeros, x.shape[-1:])
        return x.astype(jnp.float32) * per_channel(scale) + per_channel(shift)


class UpConv(nn.Module):
    """Double the image by a transposed 2x2 convolution of stride 2.

    Its patches do not overlap, so it is a linear map at each pixel whose output becomes a patch.
    """

    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w channels"]:
        start = nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, (x.shape[-1], 4 * self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        dtype = jnp.dtype(self.dtype)
        x = jnp.matmul(x.astype(dtype), kernel.astype(dtype), precision=precision(self.dtype))
        x = rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
        return x + per_channel(bias.astype(dtype))


class ParserNetwork(nn.Module):
    """A face parser's network, which maps images to class logits per pixel."""

    @property
    def factor(self) -> int:
        """Divisor that height and width of images must have."""
        raise NotImplementedError

    def outputs(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h w classes"], Float[Array, "b _ _ d"]]:
        """Return the logits and the activations of the coarsest resolution, both float32."""
        raise NotImplementedError

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w classes"]:
        """Return float32 logits.

        Args:
          images: images in [-1, 1]; height and width are multiples of `factor`.

        Raises:
          InputError: if height or width is not a multiple of `factor`.
        """
        return self.outputs(images)[0]

    def features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Return the coarsest activations averaged over the image, float32."""
        return self.outputs(images)[1].mean(axis=(1, 2))


def check_sides(images: Float[Array, "b h w c"], factor: int) -> None:
    """Raise InputError unless height and width are multiples of `factor`."""
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise InputError(
            f"images of {height} x {width} pixels do not fit the face parser: resize both sides "
            f"to a multiple of {factor}"
        )


def per_channel(values: Float[Array, " c"]) -> Float[Array, "1 1 1 c"]:
    return values[None, None, None]


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 max pooling."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def repeat_twice(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Double the image by repeating pixels."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def resize_corners(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b height width c"]:
    """Bilinear resizing that keeps the centres of corner pixels (`align_corners=True`)."""
    exact = jax.lax.Precision.HIGHEST
    rows, columns = corner_weights(x.shape[1], height), corner_weights(x.shape[2], width)
    x = jnp.einsum("yh,bhwc->bywc", rows, x, precision=exact)
    return jnp.einsum("xw,bywc->byxc", columns, x, precision=exact)


def corner_weights(old: int, new: int) -> Any:
    """Interpolation weights along one side, float32 (new, old)."""
    place = np.arange(new) * ((old - 1) / (new - 1))
    distance = np.abs(place[:, None] - np.arange(old))
    return np.maximum(0, 1 - distance).astype(np.float32)
