"""The type of norms, softmaxes and sums, which bfloat16 is too coarse for."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> type:
    """float64 for float64, otherwise float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
