"""The style sub-layers of SISMA's blocks, through which image tokens read one token per class.

With X the normalised image tokens, T the style tokens (`style_encoder`), and p(l, k) the share of
class k among the label map's pixels in the cell of token l,

  attention                                            mamba
    q = X W_q;  k = T W_k;  v = T W_v                    S = LayerNorm(p T W + position)
    out = softmax(q k^T / sqrt(head) + log p) v W_out    out = Cross-Mamba(X, S)  (`mamba`)

The attention is conditioned on the mask like SCA-DM's (arXiv 2403.12743, equation 8, as in its
code): a token attends only to the classes in its cell, weighted by the logarithm of their share.
Tokens of other classes do not affect it and receive no gradient from it. A cell without a class
reads nothing. "full_attention", the paper's ablation, omits log p, so every token attends to every
class.

The cost of either per image token does not depend on the number of image tokens: 19 keys, or one
scan.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from sisma_jax.models.layers.embeddings import Positions
from sisma_jax.models.sisma.attention_mixers import AttentionMaps
from sisma_jax.models.sisma.kept import projected
from sisma_jax.models.sisma.mamba import CrossMamba, MaskStream, layer_norm, xavier


@flax.struct.dataclass
class StyleKeys:
    """Keys and values of the style for one attention, the same at every solver step.

    k, v: (b, s, n, h), for s classes and n heads; log_share: (b, l, s), minus infinity where a cell
    has no pixel of a class. For the whole model they have a leading axis of blocks.
    """

    k: Any
    v: Any
    log_share: Any


class StyleAttention(AttentionMaps):
    """Attention of image tokens to style tokens (module docstring, left column).

    Attributes:
      masked: condition the attention on the mask; False for "full_attention".
    """

    masked: bool = True

    def style_stream(
        self, style: Float[Array, "b s token"], shares: Float[Array, "b l s"]
    ) -> StyleKeys:
        keys = self._keys(style.astype(self.dtype))
        seen = jnp.log(shares) if self.masked else jnp.zeros_like(shares)
        return StyleKeys(keys.k, keys.v, seen)

    def __call__(
        self, tokens: Float[Array, "b l width"], style: StyleKeys
    ) -> Float[Array, "b l width"]:
        return self._attend(tokens, style.k, style.v, style.log_share)


class StyleMamba(nn.Module):
    """A second Cross-Mamba, over the style laid out on the grid (module docstring, right)."""

    width: int
    grid: tuple[int, int]
    mixer: dict[str, Any]
    """Attributes of the `CrossMamba`."""
    dtype: str

    def setup(self) -> None:
        self.place = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype)
        self.positions = Positions(self.grid)
        self.norm = layer_norm()
        self.cross = CrossMamba(**self.mixer)

    def style_stream(
        self, style: Float[Array, "b s token"], shares: Float[Array, "b l s"]
    ) -> MaskStream:
        placed = jnp.einsum("bls,bsd->bld", shares, self.place(style).astype(jnp.float32))
        placed = projected(placed)
        return self.cross.mask_stream(self.norm(self.positions(placed)).astype(self.dtype))

    def __call__(
        self, tokens: Float[Array, "b l width"], style: MaskStream, order: Int32[Array, "k l"]
    ) -> Float[Array, "b l width"]:
        return self.cross(tokens, style, order)
