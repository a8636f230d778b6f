"""Gradients of 16-bit arguments in float32, so that a sum over instances is rounded once.

`jax.vmap` sums the gradients of an argument that it does not map. A function with a custom gradient
returns them in the dtypes of its arguments, so that 16-bit terms would be rounded before they are
summed, and the rounding errors would remain where the terms cancel. So such a function takes its
arguments twice: as they are, to compute the values, and as float32 copies, which have all of the
gradient. Nothing reads the copies, and XLA removes them.
"""

from typing import Any

import jax
import jax.numpy as jnp


def widened(arrays: Any) -> Any:
    """A tree of arrays in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
