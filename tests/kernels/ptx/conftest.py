import importlib.util

import jax
import pytest

from sisma_jax.kernels.selective_scan.pallas.mosaic import LEAST_JAX


@pytest.fixture(autouse=True)
def short_chunks():
    """Chunks are as long as on a GPU: kernels are compiled here, not interpreted by Pallas."""


@pytest.fixture
def compiler():
    """Skips a test where kernels of an implementation cannot be compiled to PTX."""

    def needed(implementation: str) -> None:
        if importlib.util.find_spec("jax_cuda12_plugin") is None:
            pytest.skip("needs the CUDA compiler: pip install -e '.[gpu-check]'")
        if implementation == "pallas_mosaic" and jax.__version_info__ < LEAST_JAX:
            pytest.skip(f"pallas_mosaic needs jax {'.'.join(map(str, LEAST_JAX))}")
        if implementation == "pallas_triton" and jax.__version_info__ >= (0, 11):
            pytest.skip("newer jax does not show the PTX of Triton's kernels")

    return needed
