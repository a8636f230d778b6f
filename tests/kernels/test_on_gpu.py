"""The selective scan on an NVIDIA GPU, compiled: every implementation, plan, number of states and
option against float64, launches that repeat bit for bit, and times.

    JAX_PLATFORMS=cuda python -m pytest -m gpu -rs tests/kernels/test_on_gpu.py --times FILE

`make test-gpu` does this. FILE receives the times as JSON in the format of scan_bench.py in
benchmarks/; without it nothing is timed.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan.api import best_implementation, check_here, kernel_for_gpus
from sisma_jax.kernels.selective_scan.pallas import mosaic, triton
from tests.kernels.backends import PALLAS
from tests.kernels.checks import (
    DEVICE_CASES,
    OPTIONAL,
    check_against_oracle,
    check_device_case,
    check_same_bits,
    check_several_orders,
    check_shared_gradients,
    check_under_checkpoint,
    make_arrays,
    permutation,
    saturating_arrays,
    small_parts,
    some_resets,
    use_plan,
    vanishing_arrays,
)
from tests.lowering import launches

IN_JAX = ["associative", "chunked"]
BACKENDS = {one.name: one for one in (triton.BACKEND, mosaic.BACKEND)}
LARGE = dict(batch=8, channels=1536, state=16)
TIMED = [("8,1024,1536,16", 1), ("8,1024,1536,16", 4), ("1,4096,1536,16", 1)]
"""Sizes, and numbers of scan orders."""
REPEATS = 10


@pytest.fixture(autouse=True, scope="module")
def gpu():
    try:
        jax.devices("cuda")
    except (RuntimeError, AssertionError) as error:  # the latter where no platform can be used
        reason = f" ({error})" if str(error) else ""
        pytest.skip(
            f"JAX finds no NVIDIA GPU{reason}: where there is one, set JAX_PLATFORMS=cuda and "
            "install the extra cuda12 or cuda13"
        )


pytestmark = pytest.mark.gpu


@pytest.fixture
def implementation(request, gpu):
    """The name of an implementation that this GPU has."""
    try:
        check_here(request.param, LARGE["state"])
    except NotImplementedError as error:
        pytest.skip(str(error))
    return request.param


each_kernel = pytest.mark.parametrize("implementation", PALLAS, indirect=True)
each_implementation = pytest.mark.parametrize("implementation", [*PALLAS, *IN_JAX], indirect=True)


@each_implementation
@pytest.mark.parametrize(
    "case",
    DEVICE_CASES,
    ids=[f"plan{x.plan}-{x.state}states-{x.dtype}-{x.length}steps" for x in DEVICE_CASES],
)
def test_every_option_plan_and_number_of_states(implementation, case, monkeypatch):
    backend = BACKENDS.get(implementation)
    plan = None if backend is None else use_plan(monkeypatch, backend, case)
    check_device_case(implementation, case, plan)


@pytest.mark.parametrize(
    ("length", "dtype", "ordered", "reverse"),
    [(2049, "float32", True, True), (4096, "bfloat16", False, False)],
)
@each_kernel
def test_large_scans(implementation, length, dtype, ordered, reverse):
    arrays = make_arrays(length, dtype=jnp.dtype(dtype), **LARGE)
    check_against_oracle(
        implementation,
        arrays,
        permutation(length) if ordered else None,
        parts=small_parts(arrays),
        delta_softplus=True,
        reverse=reverse,
    )


@pytest.mark.parametrize("implementation", IN_JAX, indirect=True)
def test_a_large_scan_in_jax_alone(implementation):
    arrays = make_arrays(1024, **LARGE | {"batch": 2})
    check_against_oracle(
        implementation, arrays, permutation(1024), parts=small_parts(arrays), delta_softplus=True
    )


@pytest.mark.parametrize("make", [saturating_arrays, vanishing_arrays])
@each_implementation
def test_deltas_saturating_and_vanishing(implementation, make):
    check_against_oracle(implementation, make(), delta_softplus=True, reverse=True)


@each_implementation
def test_several_orders(implementation):
    check_several_orders(implementation, length=131, orders=4, channels=200, state=16)


@each_implementation
def test_gradients_under_checkpoint_for_decays_that_range_widely(implementation):
    """The package jax-linear-attention reports wrong gradients of `associative_scan` on an H100."""
    check_under_checkpoint(implementation, length=1024, channels=96, state=16)


@each_kernel
def test_gradients_that_orders_share_are_rounded_once(implementation):
    check_shared_gradients(implementation)


@each_implementation
def test_resets_of_the_state(implementation):
    check_against_oracle(
        implementation,
        make_arrays(131, channels=200, state=16),
        permutation(131),
        resets=some_resets(131),
        delta_softplus=True,
    )


@each_kernel
def test_launches_on_the_same_inputs_give_the_same_bits(implementation):
    arrays = make_arrays(1024, dtype=jnp.bfloat16, **LARGE)
    check_same_bits(implementation, arrays, permutation(1024), delta_softplus=True)


@each_implementation
def test_a_batch_over_all_gpus(implementation):
    count = jax.device_count()
    if count < 2:
        pytest.skip("needs two GPUs or more")
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    place = lambda x: jax.device_put(x, NamedSharding(mesh, P("data") if x.ndim == 3 else P()))
    with jax.set_mesh(mesh):
        check_against_oracle(
            implementation,
            make_arrays(131, OPTIONAL, batch=2 * count, channels=200, state=16),
            permutation(131),
            place=place,
            delta_softplus=True,
        )


@each_implementation
def test_a_length_over_all_gpus(implementation):
    count = jax.device_count()
    if count < 2:
        pytest.skip("needs two GPUs or more")
    mesh = jax.make_mesh((count,), ("sequence",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        check_against_oracle(
            implementation,
            make_arrays(65 * count, channels=200, state=16),
            resets=some_resets(65 * count),
            delta_softplus=True,
            axis_name="sequence",
        )


def test_the_default_is_a_kernel(gpu):
    kernel, reason = kernel_for_gpus(LARGE["state"])
    if kernel is None:
        pytest.skip(reason)
    assert best_implementation(LARGE["state"]) == kernel.BACKEND.name
    arrays = make_arrays(131, channels=200, state=16)
    loss = lambda arrays: jnp.sum(selective_scan(**arrays, delta_softplus=True))
    assert launches(jax.jit(jax.grad(loss)).lower(arrays).as_text()) == 2
    check_against_oracle(None, arrays, permutation(131), delta_softplus=True)


def test_times(gpu, request, benchmark):
    file = request.config.getoption("times")
    if file is None:
        pytest.skip("times are measured for --times FILE")
    names = [getattr(name, "values", (name,))[0] for name in PALLAS]  # parameters with marks
    rows = measured(benchmark, names, TIMED, REPEATS)
    arguments = request.config.invocation_params.args
    write_times(benchmark, request.config.invocation_params.dir / file, arguments, rows)
    assert any(row["status"] == "measured" for row in rows)
    assert not any(row["status"] == "wrong" for row in rows)


def measured(benchmark, implementations, sizes_and_orders, repeats):
    """Rows of benchmarks/scan_bench.py, all options in bfloat16; each is first compared with
    float64."""
    cases = benchmark("scan_cases")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return [
            benchmark("scan_bench").measure(
                cases.Case(cases.Size.parse(size), name, "bfloat16", full=True, orders=orders),
                repeats,
            )
            for size, orders in sizes_and_orders
            for name in implementations
        ]


def write_times(benchmark, path, arguments, rows):
    command = " ".join(["JAX_PLATFORMS=cuda python -m pytest", *map(str, arguments)])
    packages = (*benchmark("scan_bench").PACKAGES, "jax-cuda12-plugin", "jax-cuda13-plugin")
    benchmark("report").write(path, packages, {"rows": rows, "over_length": []}, command)
