"""The attention of every network here: softmax(q k^T / sqrt(head) + bias) v.

XLA's matrix products with a softmax in float32 between, on every device, as
`jax.nn.dot_product_attention` is where no other is named; that one has no backward pass for
bfloat16 where dtype promotion is strict. cuDNN's fused attention, which never writes the softmax to
memory and is faster on GPUs, takes no float32 and no CPU.

Memory is linear in the number of tokens, by two things: the backward pass keeps q, k and v and
computes the softmax again, and `blocked_attention` goes through many queries in blocks.

Shape letters: b batch, l queries, s keys, n heads, h channels of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

LONGEST_WHOLE = 2048
"""Tokens up to which all queries are taken at once."""
QUERIES = 1024
"""Queries of a block, where there are more."""


def attention(
    q: Float[Array, "b l n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    bias: Float[Array, "b l s"] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "b l n h"]:
    """softmax(q k^T / sqrt(h) + bias) v for n heads, all queries at once.

    Args:
      q, k, v: of one type, which the output has; the softmax is float32.
      bias: float32, the same for all heads; minus infinity where a query is not to see a key. One
        that sees none reads zeros.
      precision: of both products.
    """
    product = partial(jnp.einsum, precision=precision)

    @partial(jax.checkpoint, prevent_cse=False)  # SISMA's passes are loops, apart already
    def attend(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        logits = product("blnh,bsnh->bnls", q, k, preferred_element_type=jnp.float32)
        logits = logits * q.shape[-1] ** -0.5
        if bias is None:
            weights = jax.nn.softmax(logits)
        else:
            seen = jnp.isfinite(bias).any(-1, keepdims=True)[:, None]
            logits = jnp.where(seen, logits + bias[:, None], 0.0)
            weights = jnp.where(seen, jax.nn.softmax(logits), 0.0)
        return product("bnls,bsnh->blnh", weights.astype(v.dtype), v)

    return attend(q, k, v, bias)


def blocked_attention(
    q: Float[Array, "b l n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    bias: Float[Array, "b l s"] | None = None,
) -> Float[Array, "b l n h"]:
    """`attention`, in blocks of queries where they are many."""
    if q.shape[1] <= LONGEST_WHOLE:
        return attention(q, k, v, bias)
    count = q.shape[1] // QUERIES
    end = count * QUERIES
    attend = lambda queries: attention(queries[0], k, v, queries[1])
    blocks = jax.tree.map(
        lambda x: rearrange(x[:, :end], "b (i l) ... -> i b l ...", i=count), (q, bias)
    )
    out = rearrange(jax.lax.map(attend, blocks), "i b l n h -> b (i l) n h")
    if end == q.shape[1]:
        return out
    rest = jax.tree.map(lambda x: x[:, end:], (q, bias))
    return jnp.concatenate([out, attend(rest)], axis=1)
