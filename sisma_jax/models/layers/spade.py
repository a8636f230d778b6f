"""Layers of diffusion U-Nets conditioned on a label map by SPADE (Park et al., arXiv 1903.07291).

SDM (arXiv 2207.00050) and SCA-DM (arXiv 2403.12743) use the residual block of Dhariwal and Nichol
(arXiv 2105.05233). In conditioned blocks both norms are SPADE:

    SPADE(x, map) = GroupNorm(x) (1 + gamma(map)) + beta(map)

where convolutions compute gamma and beta from the map for every position. Arrays are NHWC. All
activations, residual sums included, have the compute type `dtype` (None: that of inputs and
parameters); norms, the softmax, time and parameters are float32, or float64 for inputs of float64.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float, Float32

from sisma_jax.models.layers.attention import attention
from sisma_jax.models.layers.wide import wide

NORM_EPSILON = 1e-5
"""PyTorch's default."""


def conv(
    channels: int,
    dtype: str | None,
    name: str,
    *,
    size: int = 3,
    stride: int = 1,
    zero: bool = False,
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
    rounded: bool = True,
) -> Float[Array, "b h w c"]:
    """Group normalisation in float32 (float64 for x of float64), rounded to the type of x, or not.

    The variance is that of centred values.

    E[x^2] - E[x]^2 would lose a variance that is small beside the mean to rounding.
    """
    layer = nn.GroupNorm(
        groups,
        epsilon=epsilon,
        use_fast_variance=False,
        use_bias=affine,
        use_scale=affine,
        dtype=wide(x.dtype),
        name=name,
    )
    y = layer(x.astype(wide(x.dtype)))
    return y.astype(x.dtype) if rounded else y


def modulated(
    x: Float32[Array, "b h w c"], scale: Float[Array, "b _ _ c"], shift: Float[Array, "b _ _ c"]
) -> Float32[Array, "b h w c"]:
    """x (1 + scale) + shift in float32: bfloat16 would round small scales beside 1 to zero."""
    return x * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)


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


@flax.struct.dataclass
class Modulation:
    """What the map determines of one norm: gamma and beta (b, h, w, c), in the compute type."""

    gamma: Any
    beta: Any


class SPADE(nn.Module):
    """GroupNorm whose scale and shift are computed from the label map, or given.

    The map (one channel per class) may be finer than `x`: see `at_size`.
    """

    groups: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        mask: Float[Array, "b H W k"] | Modulation,
        *,
        rounded: bool = True,
    ) -> Float[Array, "b h w c"]:
        """Return the result in the type of x, or with `rounded=False` in float32."""
        if not isinstance(mask, Modulation):
            mask = _modulation(at_size(mask, x), x.shape[-1], self.hidden, self.dtype)
        h = normalise(x, self.groups, "norm", affine=False, rounded=False)
        h = modulated(h, mask.gamma, mask.beta)
        return h.astype(x.dtype) if rounded else h


def _modulation(
    semantics: Float[Array, "b h w k"], channels: int, hidden: int, dtype: str
) -> Modulation:
    """The three convolutions of SPADE; call it within a compact module, which gets them."""
    h = nn.relu(conv(hidden, dtype, "shared")(semantics))
    return Modulation(conv(channels, dtype, "gamma")(h), conv(channels, dtype, "beta")(h))


class SPADEOfMask(nn.Module):
    """The part of `SPADE` that depends on the map alone, with the same parameters.

    Attributes:
      channels, size: of the image that SPADE normalises.
      hidden, dtype: as in `SPADE`.
    """

    channels: int
    size: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, semantics: Float[Array, "b H W k"]) -> Modulation:
        step = semantics.shape[1] // self.size
        return _modulation(semantics[:, ::step, ::step], self.channels, self.hidden, self.dtype)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); time acts at the second norm, a map by SPADE.

    Attributes:
      channels: channels of the output; if the input has others, a 1 x 1 convolution maps it.
      groups: groups of the norms.
      dtype: compute type.
      hidden: channels between the map and SPADE's gamma and beta; 0 for a block without a map.
      scale_shift: time scales and shifts the output of the second norm; otherwise it is added to
        the norm's input.
      resample: `halve` or `double`, applied to both branches before the first convolution. With
        `double`, the first norm sees the coarse image and the second the fine one.
      zero: initialise the second convolution to zero, so that a new block adds nothing.
    """

    channels: int
    groups: int
    dtype: str | None
    hidden: int = 0
    scale_shift: bool = True
    resample: Callable[[Array], Array] | None = None
    zero: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b width"] | None = None,
        mask: Float[Array, "b H W k"] | dict[str, Modulation] | None = None,
    ) -> Float[Array, "b _ _ channels"]:
        """Apply the block; `mask` is the label map, or the modulations of norm1 and norm2.

        A block that is initialised without `time` has no layer for it.
        """

        def norm(h: Array, name: str, *, rounded: bool = True) -> Array:
            if mask is None:
                return normalise(h, self.groups, name, rounded=rounded)
            own = mask[name] if isinstance(mask, dict) else mask
            spade = SPADE(self.groups, self.hidden, self.dtype, name=name)
            return spade(h, own, rounded=rounded)

        h = nn.silu(norm(x, "norm1"))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(self.channels, self.dtype, "conv1")(h)
        if time is not None:
            features = (1 + self.scale_shift) * self.channels
            time = nn.Dense(features, dtype=jnp.float32, name="time")(nn.silu(time))[:, None, None]
        if time is None:
            h = norm(h, "norm2")
        elif self.scale_shift:
            shifted = modulated(norm(h, "norm2", rounded=False), *jnp.split(time, 2, axis=-1))
            h = shifted.astype(h.dtype)
        else:
            h = norm(h + time.astype(h.dtype), "norm2")
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
