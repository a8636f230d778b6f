"""How a block of SISMA reads the style: from one token per class to the tokens of the grid.

With X the normalised image tokens, T the style tokens (`style_encoder`), and p(l, k) the share of
class k among the label map's pixels in the cell of token l,

  attention                                            mamba
    q = X W_q;  k = T W_k;  v = T W_v                    S = LayerNorm(p T W + position)
    out = softmax(q k^T / sqrt(head) + log p) v W_out    out = Cross-Mamba(X, S)  (`mamba`)

The attention is conditioned on the mask as SCA-DM's (arXiv 2403.12743, equation 8, as its code has
it): a token sees the classes of its own cell only, by the logarithm of their share. What another
class's token says reaches it by no path of this layer, and its gradient there is zero. A cell
without a class reads nothing. "full_attention" leaves log p out, so that every token sees every
class: the paper's ablation.

Both cost as much per image token, whatever the number of image tokens: 19 keys, or one scan.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from sisma_jax.models.attention_mixers import AttentionMaps
from sisma_jax.models.embeddings import Positions
from sisma_jax.models.mamba import CrossMamba, MaskStream, layer_norm, xavier


@flax.struct.dataclass
class StyleKeys:
    """All that one attention needs of the style; the same at every solver step.

    k, v: (b, s, n, h), of s classes and n heads; log_share: (b, l, s), minus infinity where a cell
    has nothing of a class; for a whole model each has one more axis in front, the blocks.
    """

    k: Any
    v: Any
    log_share: Any


class StyleAttention(AttentionMaps):
    """Image tokens read style tokens (module docstring, left column).

    Attributes:
      masked: by the mask; else every token sees every class.
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
    """A second Cross-Mamba, over the style laid out as the mask is (module docstring, right)."""

    width: int
    grid: tuple[int, int]
    mixer: dict[str, Any]
    """Of `CrossMamba`."""
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
        return self.cross.mask_stream(self.norm(self.positions(placed)).astype(self.dtype))

    def __call__(
        self, tokens: Float[Array, "b l width"], style: MaskStream, order: Int32[Array, "k l"]
    ) -> Float[Array, "b l width"]:
        return self.cross(tokens, style, order)
