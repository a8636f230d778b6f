"""How much of the machine a run uses.

    MFU = 6 * MACs of an image * images per second / peak

Training takes three passes of two operations per MAC (`models.cost`). The peak is measured, not
read from a data sheet: operations per second of large matrix products in the compute type, on all
devices at once.
"""

import sys
import time

import jax
import jax.numpy as jnp

from sisma_jax.training.sharding import batch_sharding, local_mesh

MEASURED_SECONDS = 0.1
SIDE = {"cpu": 512}
ACCELERATOR_SIDE = 4096
"""Of the square matrices: large enough for a rate near the best, small enough to be over soon, and
small as what they take (32 MiB each in bfloat16) counts in `peak_memory` for the rest of a run."""


def matmul_peak(dtype: str) -> float:
    """Measure operations per second of this process's devices together.

    Args:
      dtype: "float32" or "bfloat16"; float32 in whatever precision JAX multiplies by default.
    """
    mesh = local_mesh()
    side = SIDE.get(mesh.devices.flat[0].platform, ACCELERATOR_SIDE)
    rows = batch_sharding(mesh)
    keys = jax.random.split(jax.random.key(0))
    # Made where they are used: the first device need not hold those of all.
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
    """Return the share of `peak` that training at this rate uses; see the module docstring."""
    return 6 * macs * images_per_second / peak


def peak_memory() -> int:
    """Bytes of a device at their most so far; of this process on a CPU, 0 on Windows."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    if sys.platform == "win32":
        return 0
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
