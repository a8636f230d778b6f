"""The name of what a forward pass stores for the gradient, for policies of `jax.checkpoint`.

A policy that saves CHECKPOINTS and the scan's outputs runs no forward pass a second time.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

CHECKPOINTS = "selective_scan_checkpoints"


def named(x: jax.Array) -> jax.Array:
    return checkpoint_name(x, CHECKPOINTS)
