"""Self- and cross-attention, the counterparts that Self- and Cross-Mamba are compared with.

The twin of SISMA (`model.mixer="attention"`) uses them in place of the Mamba mixers and is
otherwise identical. With X the normalised tokens and heads of `head` channels,

  Self-attention                          Cross-attention, S = the mask's tokens
    q = X W_q                               q = X W_q
    k = X W_k;  v = X W_v                   k = S W_k;  v = S W_v
                    out = softmax(q k^T / sqrt(head)) v  W_out

Every token attends to all others, without a scan order; learned positions alone encode places. On a
GPU the twin's speed is that of XLA's attention (`attention`).

A block of the twin has 9 D^2 parameters in the modulation by t, 2 ff_ratio D^2 in the feed-forward
network and 4 D^2 in each mixer. With ff_ratio 7 these are 31 D^2, as many as a Mamba block has with
ff_ratio 4 and expand 2 (9 + 8 + 6 + 8, to leading order). The study compares these two.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
from einops import rearrange
from jaxtyping import Array, Float

from sisma_jax.models.layers.attention import blocked_attention
from sisma_jax.models.sisma.kept import mixed, projected
from sisma_jax.models.sisma.mamba import xavier


class AttentionMaps(nn.Module):
    """The shared part of the attentions: four linear maps, heads, and softmax over all keys."""

    width: int
    head: int
    dtype: str = "float32"

    def setup(self) -> None:
        dense = partial(nn.Dense, self.width, use_bias=False, kernel_init=xavier, dtype=self.dtype)
        self.project_q = dense()
        self.project_k = dense()
        self.project_v = dense()
        self.project_out = dense()

    def _heads(self, x: Float[Array, "b l width"]) -> Float[Array, "b l n h"]:
        return rearrange(projected(x), "b l (n h) -> b l n h", h=self.head)

    def _keys(self, tokens: Float[Array, "b s width"]) -> "MaskKeys":
        return MaskKeys(self._heads(self.project_k(tokens)), self._heads(self.project_v(tokens)))

    def _attend(
        self,
        tokens: Float[Array, "b l width"],
        k: Float[Array, "b s n h"],
        v: Float[Array, "b s n h"],
        bias: Float[Array, "b l s"] | None = None,
    ) -> Float[Array, "b l width"]:
        # The blocks of SISMA are a scan.
        q = self._heads(self.project_q(tokens))
        out = mixed(blocked_attention(q, k, v, bias, prevent_cse=False))
        return projected(self.project_out(rearrange(out, "b l n h -> b l (n h)")))


@flax.struct.dataclass
class MaskKeys:
    """Keys and values of the mask for one cross-attention, the same at every solver step.

    Both are (b, s, n, h); for the whole model they have a leading axis of blocks.
    """

    k: Any
    v: Any


class SelfAttention(AttentionMaps):
    """Self-attention of image tokens (module docstring, left column)."""

    def __call__(self, tokens: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        own = self._keys(tokens)
        return self._attend(tokens, own.k, own.v)


class CrossAttention(AttentionMaps):
    """Cross-attention of image tokens to mask tokens (module docstring, right column)."""

    def mask_stream(self, mask_tokens: Float[Array, "b s width"]) -> MaskKeys:
        return self._keys(mask_tokens)

    def __call__(
        self, tokens: Float[Array, "b l width"], mask: MaskKeys
    ) -> Float[Array, "b l width"]:
        return self._attend(tokens, mask.k, mask.v)
