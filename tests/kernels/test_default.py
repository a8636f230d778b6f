"""What `implementation=None` is: decided where a program is lowered, wherever JAX computes."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import automatic, oracle
from sisma_jax.kernels.selective_scan.api import best_implementation, kernel_for_gpus
from sisma_jax.kernels.selective_scan.by_platform import by_platform
from sisma_jax.kernels.selective_scan.pallas import device
from tests.kernels.backends import DEFAULT, PALLAS
from tests.kernels.checks import check_shared_gradients
from tests.lowering import equations, gpu_in_mind, launches, lowered_for_cuda, moved

LENGTH, CHANNELS, STATE = 12, 6, 4


def arrays_of(batch=2, state=STATE):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    sequence = (batch, LENGTH, CHANNELS)
    return {
        "u": normal(*sequence),
        "delta": normal(*sequence),
        "A": -jnp.exp(normal(CHANNELS, state)),
        "B": normal(batch, LENGTH, state),
        "C": normal(batch, LENGTH, state),
        "D": normal(CHANNELS),
        "z": normal(*sequence),
        "delta_bias": normal(CHANNELS),
        "h0": normal(batch, CHANNELS, state),
    }


def permutation(seed=1):
    return np.random.default_rng(seed).permutation(LENGTH).astype(np.int32)


def run(arrays, order, implementation=None, reverse=True):
    """((y, last state), gradients of 2 sum(y) + 3 sum(last state))."""
    scan = lambda arrays: selective_scan(
        **arrays, delta_softplus=True, order=order, reverse=reverse,
        return_last_state=True, implementation=implementation,
    )  # fmt: skip
    outputs, pull_back = jax.vjp(scan, arrays)
    return outputs, pull_back((jnp.full_like(outputs[0], 2), jnp.full_like(outputs[1], 3)))[0]


def check(found, arrays, order):
    """`found` is what `run` returns."""
    outputs, gradients = found
    options = dict(delta_softplus=True, order=order, reverse=True)
    expected = oracle.forward(arrays, **options)
    for actual, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())
    bars = np.full(expected[0].shape, 2.0), np.full(expected[1].shape, 3.0)
    for name, wanted in oracle.gradients(arrays, *bars, **options).items():
        tolerance = 5e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(gradients[name], wanted, atol=tolerance, err_msg=name)


@pytest.fixture
def host_with_a_gpu(monkeypatch):
    """JAX's default backend is a recent NVIDIA GPU, and these arrays are on the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(device, "compute_capability", lambda: (9, 0))


def operations(compiled):
    return Counter(equation for equation in compiled.as_text().split() if equation.endswith("("))


def layers(arrays, implementation):
    """Gradients of a few layers without recomputation: residuals are stacked."""

    def layer(u, A_and_order):
        A, order = A_and_order
        inputs = arrays | {"u": u, "A": A, "delta": u, "z": u, "D": u[0, 0]}
        return u + selective_scan(
            **inputs, order=order, delta_softplus=True, implementation=implementation
        ), None

    def loss(u, A, orders):
        return jnp.sum(jax.lax.scan(layer, u, (A, orders))[0])

    A = jnp.stack([arrays["A"]] * 3)
    orders = jnp.stack([permutation(seed) for seed in range(3)])
    return jax.jit(jax.grad(loss, (0, 1))).lower(arrays["u"], A, orders).compile()


def test_arrays_on_a_cpu_get_the_program_of_chunked(host_with_a_gpu):
    """Neither a kernel nor an interpreted one, and nothing kept for one."""
    arrays = arrays_of()
    named, default = (layers(arrays, name) for name in ("chunked", None))
    assert operations(default) == operations(named)
    assert default.cost_analysis()["flops"] == named.cost_analysis()["flops"]
    assert (
        default.memory_analysis().temp_size_in_bytes == named.memory_analysis().temp_size_in_bytes
    )
    program = jax.make_jaxpr(run)(arrays, permutation())
    assert "pallas_call" not in {one.primitive.name for one in equations(program.jaxpr)}


@pytest.mark.parametrize("eager", [True, False])
def test_values_and_gradients_there(host_with_a_gpu, eager):
    arrays, order = arrays_of(), permutation()
    found = run(arrays, order) if eager else jax.jit(run)(arrays, order)
    check(found, arrays, order)


def program_for(platform, function, *arguments):
    with gpu_in_mind("H200"):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "kernels"), [("cuda", 2), ("cpu", 0), ("tpu", 0), ("rocm", 0)]
)
def test_the_platform_of_the_program_decides_both_ways_of_the_gradient(platform, kernels):
    assert launches(program_for(platform, run, arrays_of(), permutation())) == kernels


def test_several_orders_are_one_kernel_each_way_and_no_copy_of_u():
    orders = np.stack([permutation(seed) for seed in range(2)])
    shapes = jax.eval_shape(partial(arrays_of, batch=8))

    def loss(arrays, orders):
        scan = lambda order: selective_scan(**arrays, delta_softplus=True, order=order)
        return jnp.sum(jax.vmap(scan)(orders))

    text = lowered_for_cuda(jax.grad(loss), shapes, orders)
    assert launches(text) == 2
    for operation in moved(text):
        assert f"{LENGTH}x{CHANNELS}" not in operation


@pytest.mark.parametrize("capability", [(7, 5), (7, 0)])
def test_an_old_gpu_gets_no_kernel(monkeypatch, capability):
    monkeypatch.setattr(device, "compute_capability", lambda: capability)
    kernel, reason = kernel_for_gpus(STATE)
    assert kernel is None and "sm_80 and later, this GPU is sm_7" in reason
    assert launches(program_for("cuda", run, arrays_of(), permutation())) == 0
    with pytest.raises(NotImplementedError, match=r"from sm_80 on, but this is sm_7.*='chunked'"):
        program_for("cuda", partial(run, implementation="pallas_triton"), arrays_of(), None)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax before 0.11 needs no GPU in sight")
def test_where_jax_lowers_kernels_for_known_gpus_alone_there_is_none_without():
    traced = jax.jit(run).trace(arrays_of(), permutation())
    assert launches(traced.lower(lowering_platforms=("cuda",)).as_text()) == 0


def test_a_number_of_states_that_no_kernel_takes_is_for_chunked_everywhere():
    assert launches(program_for("cuda", run, arrays_of(state=5), permutation())) == 0


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
@pytest.mark.parametrize("implementation", PALLAS)
def test_a_named_kernel_is_refused_in_a_program_for_what_has_none(implementation, platform):
    with pytest.raises(NotImplementedError, match=f"JAX runs on {platform}, no NVIDIA GPU"):
        program_for(platform, partial(run, implementation=implementation), arrays_of(), None)


def test_a_named_kernel_is_interpreted_on_a_cpu_of_a_host_with_another_default(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    arrays = arrays_of(batch=1)
    y = selective_scan(**arrays, delta_softplus=True, implementation="pallas_triton")
    expected, _ = oracle.forward(arrays, delta_softplus=True)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_the_best_implementation_is_of_the_default_device(host_with_a_gpu):
    assert best_implementation(16) == DEFAULT
    with jax.default_device(jax.devices("cpu")[0]):
        assert best_implementation(16) == "chunked"


@pytest.fixture
def kernel_on_a_cpu(monkeypatch):
    """The kernels where a GPU would get them, interpreted."""
    monkeypatch.setattr(
        automatic, "by_platform", lambda default, *, cuda: by_platform(default, cpu=cuda)
    )


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_that_orders_share_are_rounded_once(kernel, request):
    if kernel:
        request.getfixturevalue("kernel_on_a_cpu")
    with gpu_in_mind("H200"):
        check_shared_gradients(None)


def test_the_kernel_s_way_there_and_back(kernel_on_a_cpu):
    arrays, order = arrays_of(), permutation()
    with gpu_in_mind("H200"):
        check(jax.jit(run)(arrays, order), arrays, order)


@pytest.mark.slow
def test_the_kernel_s_way_of_several_orders_on_a_mesh(kernel_on_a_cpu):
    arrays = arrays_of(batch=4)
    orders = np.stack([permutation(seed) for seed in range(2)])
    several = lambda arrays, orders: jax.vmap(run, (None, 0))(arrays, orders)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    place = lambda x: jax.device_put(x, NamedSharding(mesh, P("data") if x.ndim == 3 else P()))
    with jax.set_mesh(mesh):
        compiled = jax.jit(several).lower(jax.tree.map(place, arrays), orders).compile()
        found = compiled(jax.tree.map(place, arrays), orders)
    assert "all-gather" not in compiled.as_text()
    for k, order in enumerate(orders):
        check(jax.tree.map(lambda x: x[k], found), arrays, order)  # noqa: B023


def test_along_a_direction_the_gradient_has_a_derivative():
    arrays = arrays_of()

    def slope(implementation):
        scan = lambda u: jnp.sum(
            jnp.square(selective_scan(**arrays | {"u": u}, implementation=implementation))
        )
        return jax.jvp(jax.grad(scan), (arrays["u"],), (arrays["z"],))[1]

    expected = slope("sequential")
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(jax.jit(slope, static_argnums=0)(None), expected, atol=tolerance)


def test_what_the_default_cannot_derive_is_said():
    arrays = arrays_of()
    scan = lambda u: jnp.sum(selective_scan(**arrays | {"u": u}) ** 2)
    with gpu_in_mind("H200"):
        with pytest.raises(NotImplementedError, match="the default has no forward-mode derivative"):
            jax.jvp(scan, (arrays["u"],), (arrays["u"],))
        with pytest.raises(NotImplementedError, match="no second derivatives in reverse mode"):
            jax.grad(lambda u: jnp.sum(jax.grad(scan)(u) ** 2))(arrays["u"])
    second = lambda u: jax.jvp(jax.grad(scan), (u,), (u,))[1]
    with pytest.raises(NotImplementedError, match=f"'{DEFAULT}' has first derivatives only"):
        program_for("cuda", second, arrays["u"])


def test_what_is_returned_as_it_came_is_no_second_copy():
    program = by_platform(lambda x, y: (x, x + y), cuda=lambda x, y: (x, x - y))
    choice = jax.make_jaxpr(program)(1.0, 2.0)
    assert choice.jaxpr.outvars[0] is choice.jaxpr.invars[0]
    assert [len(one.outvars) for one in choice.jaxpr.eqns] == [1]
    assert program(1.0, 2.0) == (1.0, 3.0)
