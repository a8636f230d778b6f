"""The encoder of a label map into one token per position of the latent grid.

Learned strided convolutions down-sample the map; resizing it to the grid would lose parts thinner
than a token (lips, brows). The paper shows such an encoder without its layers; these are our
choice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from sisma_jax.models.layers.embeddings import Positions
from sisma_jax.models.sisma.mamba import xavier

NORM_GROUPS = 8


class MaskEncoder(nn.Module):
    """One-hot labels -> strided convolutions -> tokens -> positions added -> LayerNorm.

    A label outside 0..num_classes-1 (255: unlabelled) is a zero vector, and a map of 255 everywhere
    is the null mask.
    """

    width: int
    num_classes: int
    downsampling: int
    channels: int
    dtype: str

    @nn.compact
    def __call__(self, labels: UInt8[Array, "b H W"]) -> Float[Array, "b l width"]:
        x = jax.nn.one_hot(labels, self.num_classes, dtype=self.dtype)
        channels = self.channels
        for _ in range(self.downsampling.bit_length() - 1):
            x = nn.Conv(channels, (3, 3), strides=2, padding=1, dtype=self.dtype)(x)
            norm = nn.GroupNorm(NORM_GROUPS, epsilon=1e-6, use_fast_variance=False)
            x = norm(x.astype(jnp.float32))
            x = nn.silu(x).astype(self.dtype)
            channels *= 2
        x = nn.Conv(self.width, (3, 3), kernel_init=xavier, dtype=self.dtype)(x)
        grid = x.shape[1:3]
        tokens = x.reshape(x.shape[0], -1, self.width).astype(jnp.float32)
        return nn.LayerNorm(epsilon=1e-6)(Positions(grid)(tokens)).astype(self.dtype)
