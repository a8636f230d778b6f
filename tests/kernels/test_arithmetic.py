"""Arithmetic of the kernels, also with the errors that a GPU's instructions may have."""

import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.kernels.selective_scan.pallas.arithmetic import Arithmetic

ULP = 2.0**-22


class Approximate(Arithmetic):
    """PTX documents these bounds for lg2.approx, ex2.approx and rcp.approx (a half of it)."""

    def __init__(self, sign: float):
        self.error = sign * ULP

    def exp2(self, x):
        return jnp.exp2(x) * (1 + self.error)

    def log2(self, x):
        return jnp.log2(x) + self.error

    def reciprocal(self, x):
        return (1 + self.error / 2) / x


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_softplus_is_right_relative_to_itself(sign):
    x = np.linspace(-16, 40, 20_001, dtype=np.float32)
    machine, exact = Approximate(sign), x.astype(np.float64)
    softplus = np.logaddexp(0, exact)
    np.testing.assert_allclose(machine.softplus(jnp.asarray(x)), softplus, rtol=3e-6)
    slope = machine.softplus_slope(jnp.asarray(softplus, jnp.float32))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-exact)), rtol=3e-6)
    np.testing.assert_allclose(machine.sigmoid(jnp.asarray(x)), 1 / (1 + np.exp(-exact)), rtol=5e-6)


def test_softplus_keeps_what_is_no_number():
    values = Arithmetic().softplus(jnp.asarray([np.nan, np.inf, -np.inf], jnp.float32))
    np.testing.assert_array_equal(values, [np.nan, np.inf, 0.0])
