"""Strict JAX for every test: no silent rank or dtype promotion, and several simulated CPU devices.

JAX_PLATFORMS=cuda runs tests on GPUs instead, with XLA's own flags; they are marked `gpu`.
"""

import gc
import os
import tempfile
from importlib.metadata import version

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    # Tests compile far longer than they compute: LLVM's optimisations would cost minutes, and so do
    # XLA's emitters of fused loops, for which there is no flag from jaxlib 0.11 on.
    os.environ["XLA_FLAGS"] = " ".join(
        [
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
            os.environ.get("XLA_FLAGS", ""),
        ]
    )
# Many tests train the same tiny model: compile its step once, for all of pytest's workers. Commands
# that tests start have the cache that they would have.
os.environ["SISMA_JAX_TESTS_CACHE"] = os.environ.get("SISMA_JAX_TESTS_CACHE") or tempfile.mkdtemp(
    prefix="sisma_jax_tests"
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", 4)))
jax.config.update("jax_compilation_cache_dir", os.environ["SISMA_JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_finish(session):
    """Rarer garbage collection: tracing allocates many objects, few of them in cycles.

    With Python's defaults, collections take a tenth of the tests' time.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def pytest_addoption(parser):
    parser.addoption(
        "--times",
        metavar="FILE",
        help="JSON file for the kernels' times on a GPU, in the format of scan_bench.py",
    )


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def inputs_folder(tmp_path_factory):
    """Tiny data and first stage (tests/tiny_runs.py)."""
    from tests.tiny_runs import write_inputs

    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(inputs_folder, tmp_path_factory):
    """A finished tiny run; do not write into it."""
    from tests.tiny_runs import train_tiny

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train_tiny(inputs_folder, workdir)
    return workdir


@pytest.fixture(scope="session")
def tiny_style_run(inputs_folder, tmp_path_factory):
    """A tiny model with a style (tests/tiny_runs.py); do not write into it."""
    from tests.tiny_runs import write_tiny_style

    workdir = tmp_path_factory.mktemp("runs") / "tiny-style"
    write_tiny_style(inputs_folder, workdir)
    return workdir


@pytest.fixture(scope="session")
def tiny_ca2sis_run(inputs_folder, tmp_path_factory):
    """A tiny CA2-SIS of the first stage, without random styles; do not write into it."""
    from tests.tiny_runs import write_tiny_ca2sis

    workdir = tmp_path_factory.mktemp("runs") / "tiny-ca2sis"
    write_tiny_ca2sis(inputs_folder, workdir)
    return workdir
