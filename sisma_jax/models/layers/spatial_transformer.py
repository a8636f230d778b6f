"""The transformer of latent diffusion's U-Net: attention among pixels, and from pixels to tokens.

The five steps (arXiv 2112.10752) are

    h = linear(GroupNorm(x))
    h = h + attention(LayerNorm(h) to itself)
    h = h + attention(LayerNorm(h) to tokens)
    h = h + feed-forward(LayerNorm(h))
    x + linear(h)

CA2-SIS (arXiv 2308.16071) has them at another width than the image's, and at fine resolutions
without the second.

SCA-DM (arXiv 2403.12743, equation 8) conditions the second attention on the mask. There is one
token per class, and a pixel attends only to that of its own class: the logits of the others are
replaced by one large negative number before the softmax. So the pixel reads its class's value
whatever its query, and queries, keys and the norm before the queries receive no gradient. A pixel
without a class, whose logits all are that number, reads the mean over all tokens.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from sisma_jax.models.layers.attention import (
    attention,
    attention_with_logits,
    blocked_attention,
)
from sisma_jax.models.layers.spade import at_size, conv, normalise
from sisma_jax.models.layers.wide import wide

GROUP_NORM_EPSILON = 1e-6
LAYER_NORM_EPSILON = 1e-5
FEED_FORWARD = 4
"""Ratio of the feed-forward network's hidden channels to the transformer's."""


class Attention(nn.Module):
    """Attention of tokens to others, with heads of a fixed width.

    Tokens for which `seen` is False contribute nothing to the output and receive no gradient. If a
    row is False everywhere, it reads the mean of all tokens: see the module docstring.

    Attributes:
      head_width: channels per head.
      dtype: compute type.
      logits: also return the scaled logits before the softmax, averaged over the heads; only
        without `seen`.
    """

    head_width: int
    dtype: str | None
    logits: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        others: Float[Array, "b s _"],
        seen: Bool[Array, "b l s"] | None = None,
    ) -> Float[Array, "b l c"] | tuple[Float[Array, "b l c"], Float[Array, "b l s"]]:
        channels = x.shape[-1]

        def heads(tokens: Array, name: str) -> Array:
            h = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(tokens)
            return rearrange(h, "b l (heads d) -> b l heads d", d=self.head_width)

        query, key, value = heads(x, "query"), heads(others, "key"), heads(others, "value")
        if self.logits:
            if seen is not None:
                raise ValueError("logits are returned without `seen` only")
            mixed, logits = attention_with_logits(query, key, value)
        elif seen is None:
            mixed = blocked_attention(query, key, value)
        else:
            some = seen.any(-1)[..., None, None]
            mixed = attention(query, key, value, jnp.where(seen, 0.0, -jnp.inf))
            mixed = jnp.where(some, mixed, value.mean(1, keepdims=True))
        read = nn.Dense(channels, dtype=self.dtype, name="out")(mixed.reshape(x.shape))
        return (read, logits) if self.logits else read


class SpatialTransformer(nn.Module):
    """The five steps of the module docstring. A new one adds nothing: its last map starts at zero.

    Attributes:
      head_width: channels per head of both attentions.
      groups: groups of the first norm.
      dtype: compute type.
      width: channels between the first and the last linear map; None for the image's.
      self_attention: have the second step.
      logits: also return the logits of the attention to tokens, before the softmax and averaged
        over the heads; only without `semantics`.
    """

    head_width: int
    groups: int
    dtype: str | None
    width: int | None = None
    self_attention: bool = True
    logits: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        tokens: Float[Array, "b k token"],
        semantics: Float[Array, "b H W k"] | None = None,
    ) -> Float[Array, "b h w c"] | tuple[Float[Array, "b h w c"], Float[Array, "b h w k"]]:
        """Return x plus what its pixels read, and with `logits` these.

        Args:
          x: features.
          tokens: one token per class.
          semantics: one channel per class, 1 at its pixels; None to attend to all tokens.
        """
        channels = x.shape[-1] if self.width is None else self.width

        def norm(h: Array, name: str) -> Array:
            kind = wide(h.dtype)
            layer = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=kind, name=name)
            return layer(h.astype(kind)).astype(h.dtype)

        seen = None
        if semantics is not None:
            seen = rearrange(at_size(semantics, x) > 0, "b h w k -> b (h w) k")
        h = normalise(x, self.groups, "norm", epsilon=GROUP_NORM_EPSILON)
        h = conv(channels, self.dtype, "in", size=1)(h)
        h = rearrange(h, "b h w c -> b (h w) c")
        if self.self_attention:
            own = norm(h, "norm1")
            h = h + Attention(self.head_width, self.dtype, name="self_attention")(own, own)
        cross = Attention(self.head_width, self.dtype, self.logits, name="cross_attention")
        read = cross(norm(h, "norm2"), tokens, seen)
        read, logits = read if self.logits else (read, None)
        h = h + read
        widen = nn.Dense(2 * FEED_FORWARD * channels, dtype=self.dtype, name="feed_in")
        value, gate = jnp.split(widen(norm(h, "norm3")), 2, axis=-1)
        gated = value * nn.gelu(gate, approximate=False)
        h = h + nn.Dense(channels, dtype=self.dtype, name="feed_out")(gated)
        h = h.reshape(*x.shape[:-1], channels)
        out = x + conv(x.shape[-1], self.dtype, "out", size=1, zero=True)(h)
        if logits is None:
            return out
        return out, logits.reshape(*x.shape[:-1], tokens.shape[1])


def transformer_macs(
    length: int,
    channels: int,
    tokens: int,
    token_width: int,
    *,
    width: int | None = None,
    self_attention: bool = True,
) -> int:
    """Return the multiply-accumulates of a `SpatialTransformer` on one image of `length` pixels."""
    inner = channels if width is None else width
    maps = 2 * channels * inner + (4 * self_attention + 2 + 3 * FEED_FORWARD) * inner**2
    keys_and_values = 2 * tokens * token_width * inner
    read = tokens + self_attention * length
    return length * maps + keys_and_values + 2 * length * read * inner
