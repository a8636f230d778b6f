"""Loss weights by which small classes of a mask count for more than their area."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from sisma_jax.models.layers.style_encoder import class_shares


def class_weights(
    labels: UInt8[Array, "b H W"], size: int, num_classes: int, balance: float
) -> Float[Array, "b size size 1"]:
    """Loss weights of the cells of a grid, float32, 1 on average over each label map.

    With P(k) the share of class k in a label map, and p(l, k) its share in cell l of size x size,

        w(l) = c sum_k p(l, k) / P(k)^balance

    with c such that the mean is 1. The pixels of a class together weigh c P(k)^(1 - balance): in
    proportion to their number for balance 0, as much as any other class for 1. Unlabelled pixels
    count as a class. The weights change what a model of limited capacity learns first, not the
    optimum.
    """
    shares = class_shares(labels, (size, size), num_classes)
    shares = jnp.concatenate([shares, 1 - jnp.sum(shares, -1, keepdims=True)], -1)
    total = jnp.mean(shares, 1, keepdims=True)
    weights = jnp.sum(shares * jnp.where(total > 0, total, 1.0) ** -balance, -1)
    weights = weights / jnp.mean(weights, 1, keepdims=True)
    return weights.reshape(-1, size, size, 1)
