"""The attention of all networks in this package: softmax(q k^T / sqrt(head) + bias) v.

On every device it is XLA's matrix products with a float32 softmax in between, like the default of
`jax.nn.dot_product_attention`, which has no backward pass for bfloat16 under strict dtype
promotion. Only for float64 is the softmax float64, too. cuDNN's fused attention, which does not
write the softmax to memory and is faster on GPUs, supports neither float32 nor CPUs.

Memory is linear in the number of tokens: the backward pass keeps q, k and v and recomputes the
softmax, and `blocked_attention` processes long sequences of queries in blocks. XLA would undo the
former by merging both computations of the softmax, unless barriers prevent it (`prevent_cse`) or
they are in different loops, as in SISMA's scan over blocks. XLA drops such barriers on a CPU, so
there only scans and blocks of queries are linear.

Shape letters: b batch, l queries, s keys, n heads, h channels of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from sisma_jax.models.layers.wide import wide

LONGEST_WHOLE = 2048
"""The most queries that are processed at once."""
QUERIES = 1024
"""Queries per block of longer sequences."""


def attention(
    q: Float[Array, "b l n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    bias: Float[Array, "b l s"] | None = None,
    precision: jax.lax.PrecisionLike = None,
    prevent_cse: bool = True,
) -> Float[Array, "b l n h"]:
    """softmax(q k^T / sqrt(h) + bias) v for n heads, all queries at once.

    Args:
      q, k, v: queries, keys and values of one dtype, also the output's; the softmax is float32.
      bias: float32, shared by all heads; minus infinity masks a key. A query whose keys are all
        masked returns zeros.
      precision: precision of both matrix products.
      prevent_cse: see `jax.checkpoint`; False within `jax.lax.scan`, which needs no barriers.
    """
    product = partial(jnp.einsum, precision=precision)

    @partial(jax.checkpoint, prevent_cse=prevent_cse)
    def attend(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        logits = _logits(q, k, precision)
        if bias is None:
            weights = jax.nn.softmax(logits)
        else:
            seen = jnp.isfinite(bias).any(-1, keepdims=True)[:, None]
            logits = jnp.where(seen, logits + bias[:, None], 0.0)
            weights = jnp.where(seen, jax.nn.softmax(logits), 0.0)
        return product("bnls,bsnh->blnh", weights.astype(v.dtype), v)

    return attend(q, k, v, bias)


@jax.checkpoint
def attention_with_logits(
    q: Float[Array, "b l n h"], k: Float[Array, "b s n h"], v: Float[Array, "b s n h"]
) -> tuple[Float[Array, "b l n h"], Float[Array, "b l s"]]:
    """`attention` without a bias, and q k^T / sqrt(h), its logits, averaged over the heads.

    Both come from one product of queries and keys. The logits have the softmax's type.
    """
    logits = _logits(q, k)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bnls,bsnh->blnh", weights, v), logits.mean(1)


def _logits(
    q: Float[Array, "b l n h"],
    k: Float[Array, "b s n h"],
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "b n l s"]:
    logits = jnp.einsum(
        "blnh,bsnh->bnls", q, k, precision=precision, preferred_element_type=wide(q.dtype)
    )
    return logits * q.shape[-1] ** -0.5


def blocked_attention(
    q: Float[Array, "b l n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    bias: Float[Array, "b l s"] | None = None,
    prevent_cse: bool = True,
) -> Float[Array, "b l n h"]:
    """`attention`, in blocks of QUERIES if there are more than LONGEST_WHOLE queries."""
    if q.shape[1] <= LONGEST_WHOLE:
        return attention(q, k, v, bias, prevent_cse=prevent_cse)
    count = q.shape[1] // QUERIES
    end = count * QUERIES
    attend = lambda queries: attention(queries[0], k, v, queries[1], prevent_cse=False)
    blocks = jax.tree.map(
        lambda x: rearrange(x[:, :end], "b (i l) ... -> i b l ...", i=count), (q, bias)
    )
    out = rearrange(jax.lax.map(attend, blocks), "i b l n h -> b (i l) n h")
    if end == q.shape[1]:
        return out
    rest = jax.tree.map(lambda x: x[:, end:], (q, bias))
    last = attention(rest[0], k, v, rest[1], prevent_cse=prevent_cse)
    return jnp.concatenate([out, last], axis=1)
