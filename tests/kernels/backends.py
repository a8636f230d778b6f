"""The implementations to test, as parameters for pytest."""

import jax
import pytest

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
ALL = ["sequential", "associative", "chunked", *PALLAS]
