"""How much the classes of a mask weigh in a loss: by their area, or small ones more than that."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from sisma_jax.models.style_encoder import class_shares


def class_weights(
    labels: UInt8[Array, "b H W"], size: int, num_classes: int, balance: float
) -> Float[Array, "b size size 1"]:
    """What the cells of a grid weigh in the loss, 1 on average over each row.

    With P(k) the share of class k in a label map, and p(l, k) that in cell l of size x size,

        w(l) = c sum_k p(l, k) / P(k)^balance

    and c so that their mean is 1, the pixels of a class weigh c P(k)^(1 - balance) together: as
    many as they are with a balance of 0, as much as those of any other class with 1. Unlabelled
    pixels are a class, too. It shifts what a small model spends itself on, not what a perfect one
    predicts.
    """
    shares = class_shares(labels, (size, size), num_classes)
    shares = jnp.concatenate([shares, 1 - jnp.sum(shares, -1, keepdims=True)], -1)
    whole = jnp.mean(shares, 1, keepdims=True)
    weights = jnp.sum(shares * jnp.where(whole > 0, whole, 1.0) ** -balance, -1)
    weights = weights / jnp.mean(weights, 1, keepdims=True)
    return weights.reshape(-1, size, size, 1)
