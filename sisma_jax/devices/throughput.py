"""Model FLOPs utilisation (MFU) and peak memory of a run.

    MFU = 6 * MACs of an image * images per second / peak

Training takes three passes with two operations per MAC (`models.cost.by_hand`). The peak is not
a data sheet's, but measured: operations per second of large matrix products in the compute type, on
all devices at once.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sisma_jax.devices.sharding import batch_sharding, local_mesh

MEASURED_SECONDS = 0.1
SIDE = {"cpu": 512}
ACCELERATOR_SIDE = 4096
"""Side of the square matrices. Large ones give a rate near the peak, but take longer, and their
memory (32 MiB each in bfloat16) counts in `peak_memory` for the rest of the run."""


def matmul_peak(dtype: str) -> float:
    """Measure the operations per second of all devices of this process together.

    A process measures each type once.

    Args:
      dtype: "float32", in JAX's default precision of matrix products, or "bfloat16".
    """
    return _matmul_peak(local_mesh(), dtype)


@functools.cache
def _matmul_peak(mesh: Mesh, dtype: str) -> float:
    side = SIDE.get(mesh.devices.flat[0].platform, ACCELERATOR_SIDE)
    rows = batch_sharding(mesh)
    keys = jax.random.split(jax.random.key(0))
    # Created where they are used, so that no device holds all of them.
    draw = lambda key: jax.random.normal(key, (mesh.size, side, side), dtype)
    a, b = map(jax.jit(draw, out_shardings=rows), keys)
    multiply = jax.jit(jnp.matmul, out_shardings=rows)
    multiply(a, b).block_until_ready()
    best, count = 0.0, 1
    for _ in range(3):
        while True:
            began = time.perf_counter()
            for _ in range(count):
                product = multiply(a, b)
            product.block_until_ready()
            seconds = time.perf_counter() - began
            best = max(best, count * mesh.size * 2 * side**3 / seconds)
            if seconds >= MEASURED_SECONDS:
                break
            count = max(2 * count, round(1.2 * count * MEASURED_SECONDS / seconds))
    return best


def mfu(macs: int, images_per_second: float, peak: float) -> float:
    """Return the share of `peak` that training at this rate uses (module docstring)."""
    return 6 * macs * images_per_second / peak


def memory_limit() -> int | None:
    """Bytes that JAX may use on each local device, the fewest; None where this is not reported."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return None if None in limits else min(limits)


def peak_memory() -> int:
    """Peak memory of a device so far in bytes; on a CPU that of the process, 0 on Windows."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    if sys.platform == "win32":
        return 0
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
