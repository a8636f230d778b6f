"""SiLU(depthwise 3x3 convolution + bias), the convolution of SISMA's mixers.

    y = SiLU(pre),  pre[p] = sum_s kernel[s] x[p + s] + bias

for every channel and position p, where s runs over the 3x3 window and x is zero outside the image.
Products and sums are float32 whatever the dtype of x, and y is rounded once. With dpre = SiLU'(pre)
dy the gradients are

    dx[p] = sum_s kernel[s] dpre[p - s]
    dkernel[s] = sum_p x[p + s] dpre[p],  dbias = sum_p dpre[p]

No platform uses XLA's grouped convolution: on a CPU it is many times slower than nine shifted
products. How these are best computed depends on the platform, and `jax.lax.platform_dependent`
chooses when a program is lowered. (The kernels' `by_platform` spares the tracing of long programs
that another platform needs, but has no second derivatives.)

CPU: XLA computes a result once more for each operation that reads it, unless it is a division, an
exponential or the like, and removes optimization barriers before it decides so. The forward pass
therefore ends in e = exp(-pre) and y = pre / (1 + e), which are both kept, and the backward pass
begins with a division:

    dpre = dy (1 + y e) / (1 + e)                         SiLU'(pre) = sigmoid + y (1 - sigmoid)

This saves some nine convolutions in each block, in a training step of the demo 7 % (measured beside
a kept pre between barriers, on two cores).

GPU and TPU: the forward pass is one kernel, which reads x and writes y. The backward pass computes
pre again, which saves the memory to keep it, and has three kernels of the size of x: one for dpre,
one for dx, and one for all ten sums of dkernel and dbias. For the last, XLA's usual kernel for sums
would read x and dpre five times, because it takes at most two such sums at once. So each sum is
split in two: the first part, over a few rows of an image, becomes one loop that adds up all ten.
Kernels and bytes were read from programs compiled for an H200; nothing was measured on a GPU or a
TPU.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import optimization_barrier, platform_dependent
from jaxtyping import Array, Float

ON_CPU = "convolution on a CPU"
"""Name, for policies of `jax.checkpoint`, of what costs more to compute again than to keep."""

LEAST_PRE = -80.0
"""Where pre is less, its exponential on a CPU is that of this value, which a float32 can hold."""


@jax.custom_vjp
def depthwise_conv3x3_silu(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], bias: Float[Array, " c"]
) -> Float[Array, "b h w c"]:
    """Return the SiLU of every channel's 3x3 convolution with its own kernel, in the dtype of x.

    Padding is zero. `kernel` and `bias` may have another dtype than `x`, and should be float32.
    """
    return _forward(x, kernel, bias)[0]


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    y, e = platform_dependent(x, kernel, bias, cpu=_forward_on_cpu, default=_forward_in_one)
    return y, (x, kernel, bias, y, e)


def _forward_on_cpu(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    pre = _convolve(_shifted(_padded(x)), kernel) + _channels(bias)
    e = jnp.exp(-jnp.maximum(pre, LEAST_PRE))
    return checkpoint_name(((pre / (1 + e)).astype(x.dtype), e.astype(x.dtype)), ON_CPU)


def _forward_in_one(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """The second result is never read, and XLA removes it."""
    pre = _convolve(_shifted(_padded(x)), kernel) + _channels(bias)
    return jax.nn.silu(pre).astype(x.dtype), jnp.zeros_like(x)


def _backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    _, kernel, bias, *_ = residuals
    dx, dkernel, dbias = platform_dependent(
        *residuals, dy, cpu=_backward_on_cpu, default=_backward_in_three
    )
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype), dbias.astype(bias.dtype)


def _backward_on_cpu(
    x: Array, kernel: Array, bias: Array, y: Array, e: Array, dy: Array
) -> tuple[Array, Array, Array]:
    y, e, dy = (array.astype(jnp.float32) for array in (y, e, dy))
    dpre = dy * (1 + y * e) / (1 + e)
    dkernel = jnp.stack([jnp.sum(shift * dpre, (0, 1, 2)) for shift in _shifted(_padded(x))])
    dx = _convolve(_shifted(_padded(dpre)), kernel[::-1, ::-1]).astype(x.dtype)
    return dx, dkernel, jnp.sum(dpre, (0, 1, 2))


def _backward_in_three(
    x: Array, kernel: Array, bias: Array, _y: Array, _e: Array, dy: Array
) -> tuple[Array, Array, Array]:
    shifts = _shifted(_padded(x))
    pre = _convolve(shifts, kernel) + _channels(bias)
    # Without the barrier dpre would be computed again in each of the nine reads for dx.
    dpre = optimization_barrier(_through_silu(pre, dy))
    dx = _convolve(_shifted(_padded(dpre)), kernel[::-1, ::-1]).astype(x.dtype)
    wide = dpre.astype(jnp.float32)
    batch, height, width, channels = x.shape
    # XLA makes a loop of a sum over axes that are not neighbours, or over fewer than 32 numbers.
    rows = 2 - height % 2
    split = (batch, rows, height // rows, width, channels)
    products = [array.reshape(split) for array in (*(shift * wide for shift in shifts), wide)]
    *dkernel, dbias = _sums(_sums(products, (1, 3)), (0, 1))
    return dx, jnp.stack(dkernel), dbias


def _sums(arrays: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """The sums of float32 arrays of one shape, in one reduction."""
    add = lambda sums, values: tuple(map(jnp.add, sums, values))
    zeros = (jnp.zeros((), jnp.float32),) * len(arrays)
    return list(jax.lax.reduce(tuple(arrays), zeros, add, axes))


def _through_silu(pre: Array, dy: Array) -> Array:
    """dpre, in the dtype of dy."""
    _, pull_back = jax.vjp(jax.nn.silu, pre)
    return pull_back(dy.astype(jnp.float32))[0].astype(dy.dtype)


def _convolve(shifts: list[Array], kernel: Array) -> Array:
    """The sum of nine shifted images times their weights."""
    weights = kernel.reshape(9, -1).astype(jnp.float32)
    return sum(shift * _channels(weight) for shift, weight in zip(shifts, weights, strict=True))


def _padded(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _shifted(padded: Array) -> list[Array]:
    """The nine shifted images in float32, in the order of the kernel's rows."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    shift = lambda i, j: padded[:, i : i + height, j : j + width].astype(jnp.float32)
    return [shift(i, j) for i in range(3) for j in range(3)]


def _channels(x: Array) -> Float[Array, "1 1 1 c"]:
    return x.astype(jnp.float32)[None, None, None]


depthwise_conv3x3_silu.defvjp(_forward, _backward)
