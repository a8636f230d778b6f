"""Arithmetic of the Pallas kernels in jnp; backends may override it with their instructions."""

import math

import jax.numpy as jnp

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

_SMALL = 0.125
"""Below this value, log(1 + e) and 1 - exp(-s) are computed by series: the error of a GPU's log2
and exp2, 2^-22, would exceed a millionth of the result there."""


class Arithmetic:
    """Elementwise functions of float32 vectors."""

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
        """log(1 + exp(x)), to the relative accuracy of float32 even for very negative x."""
        positive = jnp.where(x > 0.0, x, 0.0)  # GPUs before sm_80 lack a jnp.maximum instruction
        e = self.exp2(-LOG2_E * jnp.abs(x))
        series = e * self._polynomial(-e, [1 / k for k in range(1, 9)])
        return positive + jnp.where(e < _SMALL, series, LN_2 * self.log2(1.0 + e))

    def step_size(self, delta, bias, softplus: bool):
        """delta after bias (None for none) and softplus."""
        if bias is not None:
            delta += bias
        return self.softplus(delta) if softplus else delta

    def sigmoid(self, x):
        return self.reciprocal(1.0 + self.exp2(-LOG2_E * x))

    def softplus_slope(self, softplus):
        """sigmoid(x) = 1 - exp(-s), given s = softplus(x); by a series where s is small."""
        s = softplus
        series = s * self._polynomial(-s, [1 / math.factorial(k) for k in range(1, 7)])
        return jnp.where(s < _SMALL, series, 1.0 - self.exp2(-LOG2_E * s))

    def _polynomial(self, x, coefficients: list[float]):
        """Horner's scheme for at least two coefficients, those of 1, x, x^2, ..."""
        *rest, before, last = coefficients
        value = self.fma(last, x, before)
        for coefficient in reversed(rest):
            value = self.fma(value, x, coefficient)
        return value
