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
      bias: float32, the same for all heads; minus infinity where a query is not to see a key, but
        not for all keys of a query.
      precision: of both products.
    """
    product = partial(jnp.einsum, precision=precision)

    @partial(jax.checkpoint, prevent_cse=False)  # SISMA's passes are loops, apart already
    def attend(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        logits = product("blnh,bsnh->bnls", q, k, preferred_element_type=jnp.float32)
        logits = logits * q.shape[-1] ** -0.5
        if bias is not None:
            logits = logits + bias[:, None]
        return product("bnls,bsnh->blnh", jax.nn.softmax(logits).astype(v.dtype), v)

    return attend(q, k, v, bias)


def blocked_attention(
    q: Float[Array, "b l n h"], k: Float[Array, "b s n h"], v: Float[Array, "b s n h"]
) -> Float[Array, "b l n h"]:
    """`attention`, in blocks of queries where they are many."""
    if q.shape[1] <= LONGEST_WHOLE:
        return attention(q, k, v)
    count = q.shape[1] // QUERIES
    blocks, rest = jnp.split(q, [count * QUERIES], axis=1)
    blocks = rearrange(blocks, "b (i l) n h -> i b l n h", i=count)
    out = jax.lax.map(lambda q: attention(q, k, v), blocks)
    out = rearrange(out, "i b l n h -> b (i l) n h")
    return jnp.concatenate([out, attention(rest, k, v)], axis=1) if rest.size else out
