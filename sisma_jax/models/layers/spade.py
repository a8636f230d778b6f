"""Layers of diffusion U-Nets conditioned on a label map by SPADE (Park et al., arXiv 1903.07291).

SDM (arXiv 2207.00050) and SCA-DM (arXiv 2403.12743) use the residual block of Dhariwal and Nichol
(arXiv 2105.05233). In conditioned blocks both norms are SPADE:

    SPADE(x, map) = GroupNorm(x) (1 + gamma(map)) + beta(map)

where convolutions compute gamma and beta from the map for every position. Arrays are NHWC. All
activations, residual sums included, have the compute type `dtype`; norms, the softmax, time and
parameters are float32.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float

from sisma_jax.models.layers.attention import attention

NORM_EPSILON = 1e-5
"""PyTorch's default."""


def conv(
    channels: int, dtype: str, name: str, *, size: int = 3, stride: int = 1, zero: bool = False
) -> nn.Conv:
    """A convolution that divides the image's size by `stride`; `zero` initialises it to zero."""
    return nn.Conv(
        channels,
        (size, size),
        stride,
        padding=size // 2,  # unlike PyTorch, "SAME" pads strided ones at one end only
        kernel_init=nn.initializers.zeros if zero else nn.initializers.lecun_normal(),
        dtype=dtype,
        name=name,
    )


def normalise(
    x: Float[Array, "b h w c"],
    groups: int,
    name: str,
    *,
    affine: bool = True,
    epsilon: float = NORM_EPSILON,
) -> Float[Array, "b h w c"]:
    """Group normalisation, computed in float32, with the variance of centred values.

    E[x^2] - E[x]^2 would lose a variance that is small beside the mean to rounding.
    """
    layer = nn.GroupNorm(
        groups,
        epsilon=epsilon,
        use_fast_variance=False,
        use_bias=affine,
        use_scale=affine,
        dtype=jnp.float32,
        name=name,
    )
    return layer(x.astype(jnp.float32)).astype(x.dtype)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """2 x 2 average pooling."""
    return reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Double the image by repeating pixels."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def at_size(
    semantics: Float[Array, "b H W k"], x: Float[Array, "b h w _"]
) -> Float[Array, "b h w k"]:
    """The map down-sampled to the size of `x`, which may be coarser.

    Each pixel takes the first of the square of pixels that it covers, as in PyTorch's nearest
    interpolation; JAX's takes the middle one.
    """
    rows, columns = semantics.shape[1] // x.shape[1], semantics.shape[2] // x.shape[2]
    return semantics[:, ::rows, ::columns]


class SPADE(nn.Module):
    """GroupNorm whose scale and shift are computed from the label map.

    The map (one channel per class) may be finer than `x`: see `at_size`.
    """

    groups: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], semantics: Float[Array, "b H W k"]
    ) -> Float[Array, "b h w c"]:
        hidden = nn.relu(conv(self.hidden, self.dtype, "shared")(at_size(semantics, x)))
        gamma = conv(x.shape[-1], self.dtype, "gamma")(hidden)
        beta = conv(x.shape[-1], self.dtype, "beta")(hidden)
        return normalise(x, self.groups, "norm", affine=False) * (1 + gamma) + beta


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with time at the second norm; SPADE with a map.

    Attributes:
      channels: channels of the output; if the input has others, a 1 x 1 convolution maps it.
      groups: groups of the norms.
      hidden: channels between the map and SPADE's gamma and beta.
      dtype: compute type.
      scale_shift: time scales and shifts the output of the second norm; otherwise it is added to
        the norm's input.
      resample: `halve` or `double`, applied to both branches before the first convolution. With
        `double`, the first norm sees the coarse image and the second the fine one.
      zero: initialise the second convolution to zero, so that a new block adds nothing.
    """

    channels: int
    groups: int
    hidden: int
    dtype: str
    scale_shift: bool = True
    resample: Callable[[Array], Array] | None = None
    zero: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b width"],
        semantics: Float[Array, "b H W k"] | None = None,
    ) -> Float[Array, "b _ _ channels"]:
        def norm(h: Array, name: str) -> Array:
            if semantics is None:
                return normalise(h, self.groups, name)
            return SPADE(self.groups, self.hidden, self.dtype, name=name)(h, semantics)

        h = nn.silu(norm(x, "norm1"))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(self.channels, self.dtype, "conv1")(h)
        features = (1 + self.scale_shift) * self.channels
        time = nn.Dense(features, dtype=jnp.float32, name="time")(nn.silu(time))
        time = time.astype(h.dtype)[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm(h, "norm2") * (1 + scale) + shift
        else:
            h = norm(h + time, "norm2")
        h = conv(self.channels, self.dtype, "conv2", zero=self.zero)(nn.silu(h))
        if x.shape[-1] != self.channels:
            x = conv(self.channels, self.dtype, "skip", size=1)(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions, with heads of a fixed width."""

    head_width: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        h = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(normalise(x, self.groups, "norm"))
        # As published, query, key and value of one head are adjacent.
        query, key, value = rearrange(
            h, "b h w (heads part d) -> part b (h w) heads d", part=3, d=self.head_width
        )
        mixed = attention(query, key, value)
        return x + nn.Dense(channels, dtype=self.dtype, name="out")(mixed.reshape(x.shape))
