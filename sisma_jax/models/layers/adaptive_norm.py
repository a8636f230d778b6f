"""LayerNorm whose scale and shift are functions of time (adaLN), in float32 with its gradients.

    y = n (1 + scale) + shift,  n = (x - mean) / std over the channels of a token

In bfloat16, numbers next to 1 are 2^-8 or 2^-7 apart, so 1 + scale would round small scales to
zero; and the gradients of scale and shift are sums over all tokens. So n, the modulation and these
sums are float32, and only y is rounded. The backward pass keeps x, mean and 1 / std and computes n
again: with D channels,

    dn = dy (1 + scale),  dx = (dn - sum(dn) / D - n sum(dn n) / D) / std
    dscale = sum over tokens of dy n,  dshift = sum over tokens of dy
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

EPSILON = 1e-6


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def adaptive_layer_norm(
    x: Float32[Array, "b l width"],
    shift: Float[Array, "b width"],
    scale: Float[Array, "b width"],
    dtype: str,
) -> Float[Array, "b l width"]:
    """Normalise every token, and scale and shift all tokens of a sample alike; in `dtype`."""
    return _forward(x, shift, scale, dtype)[0]


def _forward(x: Array, shift: Array, scale: Array, dtype: str) -> tuple[Array, tuple[Array, ...]]:
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean), 0)
    factor = jax.lax.rsqrt(variance + EPSILON)
    y = (x - mean) * factor * (1 + _of_tokens(scale)) + _of_tokens(shift)
    return y.astype(dtype), (x, mean, factor, shift, scale)


def _backward(dtype: str, residuals: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, mean, factor, shift, scale = residuals
    dy = dy.astype(jnp.float32)
    n = (x - mean) * factor
    dn = dy * (1 + _of_tokens(scale))
    along = jnp.mean(dn * n, -1, keepdims=True)
    dx = (dn - jnp.mean(dn, -1, keepdims=True) - n * along) * factor
    return dx, jnp.sum(dy, 1).astype(shift.dtype), jnp.sum(dy * n, 1).astype(scale.dtype)


adaptive_layer_norm.defvjp(_forward, _backward)


@partial(jax.checkpoint, prevent_cse=False)  # keeps h as it is, and not its float32 copy
def gated_sum(
    x: Float32[Array, "b l width"], h: Float[Array, "b l width"], gate: Float[Array, "b width"]
) -> Float32[Array, "b l width"]:
    """x + gate h, with one gate for all tokens; float32 with the gate's gradient, as above."""
    return x + _of_tokens(gate) * h.astype(jnp.float32)


def shifted_sum(
    x: Float32[Array, "b l width"], h: Float[Array, "b l width"], shift: Float[Array, "b width"]
) -> Float32[Array, "b l width"]:
    """x + h + shift, in the same way."""
    return x + (h.astype(jnp.float32) + _of_tokens(shift))


def _of_tokens(x: Float[Array, "b width"]) -> Float32[Array, "b 1 width"]:
    return x.astype(jnp.float32)[:, None]
