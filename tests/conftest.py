"""Strict JAX for every test: no silent rank or dtype promotion, CPU only, several fake devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far longer than they compute: LLVM's optimisations would cost minutes.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(0)
