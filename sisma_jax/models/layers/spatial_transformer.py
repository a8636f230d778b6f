"""The transformer of latent diffusion's U-Net: attention among pixels, and from pixels to tokens.

The five steps (arXiv 2112.10752) are

    h = linear(GroupNorm(x))
    h = h + attention(LayerNorm(h) to itself)
    h = h + attention(LayerNorm(h) to tokens)
    h = h + feed-forward(LayerNorm(h))
    x + linear(h)

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

from sisma_jax.models.layers.attention import attention
from sisma_jax.models.layers.spade import at_size, conv, normalise

GROUP_NORM_EPSILON = 1e-6
LAYER_NORM_EPSILON = 1e-5
FEED_FORWARD = 4
"""Ratio of the feed-forward network's hidden channels to the image's."""


class Attention(nn.Module):
    """Attention of tokens to others, with heads of a fixed width.

    Tokens for which `seen` is False contribute nothing to the output and receive no gradient. If a
    row is False everywhere, it reads the mean of all tokens: see the module docstring.
    """

    head_width: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        others: Float[Array, "b s _"],
        seen: Bool[Array, "b l s"] | None = None,
    ) -> Float[Array, "b l c"]:
        channels = x.shape[-1]

        def heads(tokens: Array, name: str) -> Array:
            h = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(tokens)
            return rearrange(h, "b l (heads d) -> b l heads d", d=self.head_width)

        query, key, value = heads(x, "query"), heads(others, "key"), heads(others, "value")
        if seen is None:
            mixed = attention(query, key, value)
        else:
            some = seen.any(-1)[..., None, None]
            mixed = attention(query, key, value, jnp.where(seen, 0.0, -jnp.inf))
            mixed = jnp.where(some, mixed, value.mean(1, keepdims=True))
        return nn.Dense(channels, dtype=self.dtype, name="out")(mixed.reshape(x.shape))


class SpatialTransformer(nn.Module):
    """The five steps of the module docstring. A new one adds nothing: its last map starts at zero.

    Attributes:
      head_width: channels per head of both attentions.
      groups: groups of the first norm.
      dtype: compute type.
    """

    head_width: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        tokens: Float[Array, "b k token"],
        semantics: Float[Array, "b H W k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return x plus what its pixels read.

        Args:
          x: features.
          tokens: one token per class.
          semantics: one channel per class, 1 at its pixels; None to attend to all tokens.
        """
        channels = x.shape[-1]

        def norm(h: Array, name: str) -> Array:
            layer = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=jnp.float32, name=name)
            return layer(h.astype(jnp.float32)).astype(h.dtype)

        seen = None
        if semantics is not None:
            seen = rearrange(at_size(semantics, x) > 0, "b h w k -> b (h w) k")
        h = normalise(x, self.groups, "norm", epsilon=GROUP_NORM_EPSILON)
        h = conv(channels, self.dtype, "in", size=1)(h)
        h = rearrange(h, "b h w c -> b (h w) c")
        own = norm(h, "norm1")
        h = h + Attention(self.head_width, self.dtype, name="self_attention")(own, own)
        cross = Attention(self.head_width, self.dtype, name="cross_attention")
        h = h + cross(norm(h, "norm2"), tokens, seen)
        wide = nn.Dense(2 * FEED_FORWARD * channels, dtype=self.dtype, name="feed_in")
        value, gate = jnp.split(wide(norm(h, "norm3")), 2, axis=-1)
        gated = value * nn.gelu(gate, approximate=False)
        h = h + nn.Dense(channels, dtype=self.dtype, name="feed_out")(gated)
        return x + conv(channels, self.dtype, "out", size=1, zero=True)(h.reshape(x.shape))


def transformer_macs(length: int, channels: int, tokens: int, token_width: int) -> int:
    """Return the multiply-accumulates of a `SpatialTransformer` on one image of `length` pixels."""
    maps = (2 + 4 + 2 + 3 * FEED_FORWARD) * length * channels**2
    keys_and_values = 2 * tokens * token_width * channels
    return maps + keys_and_values + 2 * length * (length + tokens) * channels
