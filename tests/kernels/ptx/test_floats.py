import ctypes
import ctypes.util

import numpy as np

from . import floats


def test_fused_multiply_add_is_rounded_once():
    """The C library's `fmaf` is."""
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 2**32, (3, 20_000), dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        # In half of them the terms nearly cancel, where a second rounding would show.
        half = len(c) // 2
        b[:half] = rng.standard_normal(half)
        c[:half] = -(a[:half] * b[:half]) * np.float32(2.0) ** rng.integers(-30, 30, half)
        found = floats.fma(a, b, c)
    expected = np.array([fmaf(*x) for x in zip(a, b, c, strict=True)], np.float32)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~number)
    np.testing.assert_array_equal(found.view(np.uint32)[number], expected.view(np.uint32)[number])


def test_bfloat16_is_rounded_to_nearest_even():
    bits = np.random.default_rng(1).integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    number = ~np.isnan(numbers)
    numbers, bits = numbers[number], bits[number]
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(floats.to_bf16(numbers), rounded)


def test_errors_of_approximations_reach_their_bound_and_repeat():
    x = np.linspace(-20, 20, 20_001, dtype=np.float32)
    exact, off = floats.Approximations().ex2(x).astype(np.float64), floats.Approximations(0).ex2(x)
    share = np.abs(off / exact - 1)
    assert 2.0**-22.5 < share.max() < 2.0**-21.4 + 2.0**-24  # both are rounded to float32
    np.testing.assert_array_equal(off, floats.Approximations(0).ex2(x))
