"""Shared by both sides of `autoencoder_bench.py`: inputs, clock, memory of a process."""

import resource
import statistics
import time
from collections.abc import Callable

import numpy as np


def inputs(settings: dict) -> np.ndarray:
    """Images in [-1, 1] or latents, NHWC float32."""
    size, batch = settings["size"], settings["batch"]
    random = np.random.default_rng(0)
    if settings["operation"] == "encode":
        return random.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    return random.standard_normal((batch, size // 8, size // 8, 4)).astype(np.float32)


def images_per_second(call: Callable[[], object], settings: dict) -> dict[str, float]:
    """The median call's rate, and the first call's time, which may include compilation."""
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    times: list[float] = []
    while sum(times) < settings["seconds"] or len(times) < 3:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    rate = settings["batch"] / statistics.median(times)
    return {"images_per_second": rate, "first_call_s": first, "calls": len(times)}


def process_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
