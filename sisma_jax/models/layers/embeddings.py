"""Positions on the token grid, and embeddings of time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

TIME_FREQUENCIES = 256


def sincos_positions(
    height: int, width: int, features: int
) -> Float[np.ndarray, "length features"]:
    """Return DiT's 2-D sine-cosine positions, float32, the initial value of the learned ones."""

    def axis(positions: np.ndarray, features: int) -> np.ndarray:
        frequencies = 10000.0 ** -(np.arange(features // 2) / (features // 2))
        angles = positions[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = np.divmod(np.arange(height * width), width)
    half = features // 2
    return np.concatenate([axis(columns, half), axis(rows, half)], axis=1).astype(np.float32)


class Positions(nn.Module):
    """Adds a learned position to every token in float32, initialised by sines and cosines."""

    grid: tuple[int, int]

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        init = lambda key, shape: jnp.asarray(sincos_positions(*self.grid, shape[-1]))
        table = self.param("table", init, tokens.shape[1:])
        return tokens + table[None]


def sinusoids(t: Float32[Array, " b"], features: int) -> Float32[Array, "b features"]:
    """The cosines, then the sines, of t times rates that fall geometrically from 1 towards 1e-4."""
    half = features // 2
    rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[:, None] * rates[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class TimeEmbedding(nn.Module):
    """Embeds t in [0, 1] by sinusoids of 1000 t and a two-layer perceptron."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b width"]:
        waves = sinusoids(1000.0 * t.astype(jnp.float32), TIME_FREQUENCIES)
        init = nn.initializers.normal(0.02)
        hidden = nn.silu(nn.Dense(self.width, kernel_init=init, dtype=self.dtype)(waves))
        return nn.Dense(self.width, kernel_init=init, dtype=self.dtype)(hidden)


class StepEmbedding(nn.Module):
    """Embeds diffusion steps by sinusoids and a two-layer perceptron, in float32.

    Names and initial values of its layers are not those of `TimeEmbedding`; checkpoints hold both.
    """

    frequencies: int
    width: int

    @nn.compact
    def __call__(self, t: Float32[Array, " b"]) -> Float32[Array, "b width"]:
        waves = sinusoids(t, self.frequencies)
        return nn.Dense(self.width, name="out")(nn.silu(nn.Dense(self.width, name="in")(waves)))
