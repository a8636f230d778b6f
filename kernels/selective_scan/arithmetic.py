"""Arithmetic of the Pallas kernels, in jnp; a backend may have instructions of its own for it."""

import math

import jax.numpy as jnp

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

_SMALL = 0.125
"""Where log(1 + e) and 1 - exp(-s) go over to series: a GPU's log2 and exp2 err by 2^-22, which
below would be more than a millionth of the result."""


class Arithmetic:
    """Functions of float32 vectors."""

    def exp2(self, x):
        return jnp.exp2(x)

    def log2(self, x):
        return jnp.log2(x)

    def reciprocal(self, x):
        return 1.0 / x

    def fma(self, a, b, c):
        """a b + c; scalars are broadcast."""
        return a * b + c

    def softplus(self, x):
        """log(1 + exp(x)), to float32's relative accuracy also where it vanishes."""
        positive = jnp.where(x > 0.0, x, 0.0)  # before sm_80 no instruction is jnp.maximum
        e = self.exp2(-LOG2_E * jnp.abs(x))
        series = e * self._polynomial(-e, [1 / k for k in range(1, 9)])
        return positive + jnp.where(e < _SMALL, series, LN_2 * self.log2(1.0 + e))

    def sigmoid(self, x):
        return self.reciprocal(1.0 + self.exp2(-LOG2_E * x))

    def softplus_slope(self, softplus):
        """sigmoid(x) = 1 - exp(-s) from s = softplus(x); by its series where s is small."""
        s = softplus
        series = s * self._polynomial(-s, [1 / math.factorial(k) for k in range(1, 7)])
        return jnp.where(s < _SMALL, series, 1.0 - self.exp2(-LOG2_E * s))

    def _polynomial(self, x, coefficients: list[float]):
        """The coefficients, of which there are two at least, are those of 1, x, x^2, ..."""
        *rest, before, last = coefficients
        value = self.fma(last, x, before)
        for coefficient in reversed(rest):
            value = self.fma(value, x, coefficient)
        return value
