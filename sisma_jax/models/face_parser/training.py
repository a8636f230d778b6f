"""The training loss of face parsers.

    loss = cross-entropy, weighted mean over pixels
           + dice_weight * (1 - Dice coefficient), mean over the classes in the batch

Large classes dominate a cross-entropy without weights; the Dice term (Milletari et al., arXiv
1606.04797) gives every class the same weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

DICE_SMOOTHING = 1.0
"""Pixels added to numerator and denominator of the Dice coefficient."""


def parser_loss(
    logits: Float[Array, "b h w classes"],
    labels: UInt8[Array, "b h w"],
    dice_weight: float,
    weight: Float[Array, "b h w 1"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the training loss of a batch and its parts.

    Args:
      logits: output of a face parser.
      labels: class ids; pixels with other values (255: unlabelled) are ignored.
      dice_weight: weight of the Dice term.
      weight: weights of the pixels in the cross-entropy, 1 on average; None for 1 everywhere.

    Returns:
      The loss, and `cross_entropy` (without weights), `dice` (the unweighted Dice term) and
      `accuracy`.
    """
    truth = jax.nn.one_hot(labels, logits.shape[-1])
    labelled = truth.sum(-1)
    pixels = jnp.maximum(labelled.sum(), 1.0)
    log_shares = jax.nn.log_softmax(logits)
    entropies = -jnp.sum(truth * log_shares, -1)
    cross_entropy = jnp.sum(entropies) / pixels
    weighted = cross_entropy if weight is None else jnp.sum(weight[..., 0] * entropies) / pixels
    shares = jnp.exp(log_shares) * labelled[..., None]
    both, true, predicted = (jnp.sum(x, (0, 1, 2)) for x in (shares * truth, truth, shares))
    coefficient = (2 * both + DICE_SMOOTHING) / (true + predicted + DICE_SMOOTHING)
    present = (true > 0).astype(jnp.float32)
    dice = jnp.sum(present * (1 - coefficient)) / jnp.maximum(present.sum(), 1.0)
    is_right = jnp.argmax(logits, -1) == labels.astype(jnp.int32)
    right = is_right.astype(jnp.float32) * labelled
    metrics = {
        "cross_entropy": cross_entropy,
        "dice": dice,
        "accuracy": right.sum() / pixels,
    }
    return weighted + dice_weight * dice, metrics
