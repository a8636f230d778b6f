"""Arithmetic of the Pallas kernels, in jnp; a backend may have instructions of its own for it."""

import math

import jax.numpy as jnp

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


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
        e = self.exp2(-LOG2_E * jnp.abs(x))
        series = e * (1.0 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5)))))
        positive = 0.5 * (x + jnp.abs(x))  # a maximum that keeps NaN is no instruction before sm_80
        return positive + jnp.where(e < 0.03, series, LN_2 * self.log2(1.0 + e))

    def sigmoid(self, x):
        return self.reciprocal(1.0 + self.exp2(-LOG2_E * x))

    def softplus_slope(self, softplus):
        """sigmoid(x) = 1 - exp(-s) from s = softplus(x); by its series where s is small."""
        s = softplus
        series = s * (1.0 - s * (1 / 2 - s * (1 / 6 - s * (1 / 24))))
        return jnp.where(s < 0.03, series, 1.0 - self.exp2(-LOG2_E * s))
