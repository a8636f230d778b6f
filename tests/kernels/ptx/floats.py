"""Single-precision arithmetic of a GPU on NumPy arrays."""

import ml_dtypes
import numpy as np

F32, F64 = np.float32, np.float64
BF16 = ml_dtypes.bfloat16


def fma(a, b, c):
    """a b + c, rounded once.

    In float64 the product is exact; the sum is rounded to odd, so that the rounding to float32 is
    the only one (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, c = a.astype(F64) * b.astype(F64), c.astype(F64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    away_from_zero = (error > 0) == (total > 0)
    step = np.where(away_from_zero, 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return np.where(np.isfinite(total), odd, bits).view(F64).astype(F32)


def flushed(x):
    """Subnormal numbers as zeros of their sign (`.ftz`)."""
    return np.where(np.abs(x) < F32(2.0**-126), np.copysign(F32(0), x), x)


def canonical(x):
    """NaN as a GPU's arithmetic returns it."""
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF).view(F32), x)


class Approximations:
    """ex2.approx, lg2.approx and rcp.approx: correctly rounded, or as wrong as PTX allows.

    Bounds by the PTX manual: 2^-22 of the result for ex2, and for lg2 outside of [0.5, 2]; 2^-22
    for lg2 inside; one unit in the last place for rcp.
    """

    def __init__(self, seed: int | None = None):
        """`seed`: of the errors; None stands for none. An argument always has the same error."""
        self.seed = seed

    def _errors(self, x, bound):
        """Pseudo-random errors within the bound, a third of them at it (SplitMix64)."""
        first = np.uint64(0x9E3779B97F4A7C15 * (self.seed + 1) % 2**64)
        mixed = x.view(np.uint32).astype(np.uint64) + first
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
        unit = (mixed >> np.uint64(11)).astype(F64) * 2.0**-53
        return np.clip(3 * unit - 1.5, -1, 1) * bound

    def _relative(self, x, y, bound: float):
        return y if self.seed is None else y * (1 + self._errors(x, bound))

    def ex2(self, x):
        return self._relative(x, np.exp2(x.astype(F64)), 2.0**-22).astype(F32)

    def lg2(self, x):
        y = np.log2(x.astype(F64))
        if self.seed is not None:
            near_one = (x >= 0.5) & (x <= 2)
            bound = np.where(near_one, 2.0**-22, 2.0**-22 * np.abs(y))
            y = np.where(np.isfinite(y), y + self._errors(x, bound), y)
        return y.astype(F32)

    def rcp(self, x):
        return self._relative(x, 1 / x.astype(F64), 2.0**-23).astype(F32)


def to_bf16(x):
    """Bits of bfloat16, rounded to nearest even."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(BF16).view(np.uint16))


def from_bf16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(F32)


def to_f16(x):
    """Bits of float16, rounded to nearest even."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def from_f16(bits):
    return bits.view(np.float16).astype(F32)
