"""The modulation of SDM's and SCA-DM's norms in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.models.layers.spade import SPADE, Modulation


def test_a_small_scale_is_not_rounded_to_zero():
    """Beside 1, bfloat16 has steps of 0.004 and 0.008."""
    x = jax.random.normal(jax.random.key(0), (1, 64, 64, 8), jnp.bfloat16)
    gamma, beta = jnp.full((2, 1, 1, 1, 8), 0.0015, jnp.bfloat16)
    module = SPADE(groups=2, hidden=1, dtype="bfloat16")
    plain, y = (module.apply({}, x, Modulation(scale, beta)) for scale in (0 * gamma, gamma))
    assert y.dtype == jnp.bfloat16
    before, after = (np.asarray(a, np.float64).ravel() for a in (plain, y))
    slope, _ = np.polyfit(before, after, 1)
    np.testing.assert_allclose(slope - 1, 0.0015, rtol=0.2)  # of rounded numbers
