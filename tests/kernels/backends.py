"""The implementations to test, as parameters for pytest."""

import jax
import pytest

from sisma_jax.kernels.selective_scan.api import kernel_in_jax
from sisma_jax.kernels.selective_scan.pallas.mosaic import LEAST_JAX

PALLAS = [
    "pallas_triton",
    pytest.param(
        "pallas_mosaic",
        marks=pytest.mark.skipif(
            jax.__version_info__ < LEAST_JAX,
            reason=f"pallas_mosaic needs jax {'.'.join(map(str, LEAST_JAX))}",
        ),
    ),
]
IN_JAX = ["sequential", "associative", "chunked"]
ALL = [*IN_JAX, *PALLAS]

DEFAULT = kernel_in_jax(16)[0].BACKEND.name
"""The kernels that programs for NVIDIA GPUs have by default, in this version of jax."""
