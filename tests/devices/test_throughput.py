"""MFU, and the matrix rate that it is relative to."""

import jax
import pytest

from sisma_jax.devices import throughput
from sisma_jax.devices.throughput import matmul_peak, mfu, peak_memory


def test_training_takes_three_passes_of_two_operations_per_mac():
    assert mfu(macs=10**9, images_per_second=50.0, peak=10.0**12) == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_that_of_all_devices(dtype, monkeypatch):
    """Fake devices share the cores: together they do about what one of them does."""
    monkeypatch.setitem(throughput.SIDE, "cpu", 128)
    monkeypatch.setattr(throughput, "MEASURED_SECONDS", 0.02)
    peak = matmul_peak(dtype)
    devices = jax.local_devices()
    monkeypatch.setattr("jax.local_devices", lambda: devices[:1])
    one = matmul_peak(dtype)
    assert 1e6 < one < 1e15
    assert one / 10 < peak < 10 * len(devices) * one


def test_memory_is_in_bytes():
    assert 2**20 < peak_memory() < 2**50
