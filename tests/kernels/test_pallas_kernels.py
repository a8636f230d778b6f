"""What is particular to the Pallas kernels: plans, shapes, lowering for a GPU, what they refuse."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import oracle
from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS
from sisma_jax.kernels.selective_scan.pallas import device, launch, mosaic_plan
from sisma_jax.kernels.selective_scan.pallas import mosaic as pallas_mosaic
from sisma_jax.kernels.selective_scan.pallas import plan as launch_plan
from sisma_jax.kernels.selective_scan.pallas import triton as pallas_triton
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS
from sisma_jax.kernels.selective_scan.pallas.plan import Plan
from sisma_jax.kernels.selective_scan.pallas.sharding import batch_axes
from tests.kernels.backends import PALLAS
from tests.lowering import launches, lowered_for_cuda, moved


def arrays_of(batch, length, channels, state, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -jnp.exp(normal(channels, state).astype(jnp.float32)),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels).astype(jnp.float32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels).astype(jnp.float32),
        "h0": normal(batch, channels, state).astype(jnp.float32),
    }


def run(arrays, order=None, reverse=False, *, implementation):
    """((y, last state), gradients of 2 sum(y) + 3 sum(last state))."""

    def scan(arrays):
        return selective_scan(
            **arrays, delta_softplus=True, order=order, reverse=reverse,
            return_last_state=True, implementation=implementation,
        )  # fmt: skip

    outputs, pull_back = jax.vjp(scan, arrays)
    return outputs, pull_back((jnp.full_like(outputs[0], 2), jnp.full_like(outputs[1], 3)))[0]


def check(implementation, arrays, order=None, reverse=False):
    options = dict(delta_softplus=True, order=order, reverse=reverse)
    scan = partial(run, reverse=reverse, implementation=implementation)
    outputs, gradients = jax.jit(scan)(arrays, order)
    expected = oracle.forward(arrays, **options)
    for actual, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())
    bars = np.full(expected[0].shape, 2.0), np.full(expected[1].shape, 3.0)
    for name, wanted in oracle.gradients(arrays, *bars, **options).items():
        tolerance = 5e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(gradients[name], wanted, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("plan", pallas_triton.PLANS)
def test_every_plan_of_triton_gives_the_same(plan, monkeypatch):
    """A length that no chunk divides, channels that no block divides."""
    monkeypatch.setattr(launch, "chosen", lambda candidates, choose: plan)
    order = np.random.default_rng(1).permutation(6).astype(np.int32)
    check("pallas_triton", arrays_of(2, 6, plan.channels + 3, 4), order, reverse=True)


@pytest.mark.parametrize("implementation", PALLAS[1:])
@pytest.mark.parametrize(
    ("segments", "length", "ordered", "reverse"),
    [
        (1, 130, True, False),
        (3, 130, False, True),
        (2, 64 + 13, True, True),
        (2, 128, False, False),
    ],
)
def test_mosaic_gives_the_same_in_any_number_of_segments(
    implementation, segments, length, ordered, reverse, monkeypatch
):
    """Whole tiles and a shorter one at the end; channels that no block divides."""
    monkeypatch.setattr(launch, "chosen", lambda candidates, choose: segments)
    order = np.random.default_rng(1).permutation(length).astype(np.int32) if ordered else None
    arrays = arrays_of(1, length, 131, 4)
    check(implementation, arrays, order, reverse)
    text = lowered_for_cuda(
        lambda a: jax.grad(lambda a: jnp.sum(selective_scan(**a, implementation=implementation)))(
            a
        ),
        arrays,
    )
    assert launches(text) == (2 if segments == 1 else 4)
    # No program computes what a segment at the end would pass on.
    passed = segments - 1
    ends = f"-> (tensor<1x{passed}x4x256xf32>, tensor<1x{passed}x256xf32>)"
    calls = [line for line in text.splitlines() if "custom_call" in line and ends in line]
    assert len(calls) == (0 if segments == 1 else 2)


@pytest.mark.parametrize("implementation", PALLAS[1:])
@pytest.mark.parametrize("fields", [{"stages": 1}, {"stages": 1, "tile": 16}, {"chunk": 8}])
def test_mosaic_gives_the_same_with_less_shared_memory(implementation, fields, monkeypatch):
    """The layouts of GPUs that have less than an H200."""
    layouts = pallas_mosaic.BACKEND.layouts

    def smaller(*arguments, **options):
        return tuple(dataclasses.replace(one, **fields) for one in layouts(*arguments, **options))

    backend = dataclasses.replace(pallas_mosaic.BACKEND, layouts=smaller)
    monkeypatch.setattr(pallas_mosaic, "BACKEND", backend)
    order = np.random.default_rng(1).permutation(41).astype(np.int32)
    check(implementation, arrays_of(1, 41, 3, 4), order)


@pytest.mark.parametrize("state", launch_plan.STATES)
@pytest.mark.parametrize("implementation", PALLAS)
def test_every_number_of_states(implementation, state):
    check(implementation, arrays_of(1, 9, 5, state))


@pytest.mark.slow
@pytest.mark.parametrize("plan", pallas_triton.PLANS[:2])
def test_the_chunks_of_a_gpu(plan, monkeypatch):
    """Chunks as long as on a GPU; in the other tests they are short, since they are interpreted."""
    monkeypatch.setattr(launch, "chosen", lambda candidates, choose: plan)
    monkeypatch.setattr(pallas_triton, "longest_chunk", lambda plan: 16 // plan.vectors)
    order = np.random.default_rng(1).permutation(37).astype(np.int32)
    check("pallas_triton", arrays_of(1, 37, 5, 16), order)


@pytest.mark.parametrize("implementation", PALLAS)
def test_an_interval_of_checkpoints_that_no_kernel_has_is_refused(implementation):
    with pytest.raises(ValueError, match="chunk is 12: choose 4, 8, 16, or None"):
        IMPLEMENTATIONS[implementation](
            **arrays_of(1, 4, 3, 4), delta_softplus=True, order=None, reverse=False, chunk=12
        )


@pytest.mark.parametrize("implementation", PALLAS)
def test_second_derivatives_are_refused_in_words(implementation):
    arrays = arrays_of(1, 4, 3, 4)
    scan = lambda u: jnp.sum(selective_scan(**arrays | {"u": u}, implementation=implementation))
    with pytest.raises(
        NotImplementedError, match="first derivatives only; use implementation='seq"
    ):
        jax.grad(lambda u: jnp.sum(jax.grad(scan)(u)))(arrays["u"])


@pytest.mark.parametrize("implementation", PALLAS)
def test_nothing_is_summed_by_atomic_operations(implementation):
    """On a GPU only they could make two runs differ."""
    scan = partial(run, implementation=implementation)
    kernels = str(jax.make_jaxpr(scan)(arrays_of(2, 8, 6, 4)))
    assert "selective_scan_backward" in kernels and "atomic" not in kernels

    def with_atomics(x_ref, y_ref):
        plt.atomic_add(y_ref, 0, x_ref[0])

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert "atomic" in str(jax.make_jaxpr(pl.pallas_call(with_atomics, shape))(jnp.ones(4)))


@pytest.mark.parametrize("implementation", PALLAS)
@pytest.mark.slow
def test_the_interval_of_checkpoints_changes_memory_and_nothing_else(implementation):
    arrays = arrays_of(2, 20, 6, 4) | {"h0": None}
    options = dict(delta_softplus=True, order=None, reverse=False)

    def residuals(chunk):
        one = IMPLEMENTATIONS[implementation]
        scan = lambda arrays: one(**arrays, **options, chunk=chunk)[0].sum()
        value, gradients = jax.jit(jax.value_and_grad(scan))(arrays)
        kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(scan, a)[1], arrays))
        return value, gradients, sorted(leaf.size for leaf in kept)

    value_4, gradients_4, sizes_4 = residuals(4)
    value_8, gradients_8, sizes_8 = residuals(8)
    np.testing.assert_allclose(value_4, value_8, rtol=1e-6)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients_4, gradients_8
    )
    # (batch, ceil(length / chunk), state, channels); nothing of (batch, length, channels, state).
    assert 2 * 5 * 4 * 6 in sizes_4
    assert 2 * 3 * 4 * 6 in sizes_8
    assert max(sizes_4) == max(2 * 20 * 6, 2 * 5 * 4 * 6)


@pytest.mark.parametrize(
    ("batch", "length", "channels", "triton", "H200", "A100"),
    [
        (8, 1024, 1536, Plan(1), (1, 8), (1, 1)),
        (64, 1024, 1536, Plan(2), (1, 1), (1, 1)),
        (1, 1024, 1536, Plan(1, groups=4), (16, 16), (16, 8)),
        (1, 4096, 1536, Plan(1, groups=4), (32, 32), (16, 8)),
        (64, 256, 768, Plan(1), (1, 1), (1, 1)),
        (8, 16384, 512, Plan(1, groups=4), (8, 8), (32, 16)),
    ],
)
def test_the_plans_of_the_benchmarks_sizes(
    batch, length, channels, triton, H200, A100, monkeypatch
):
    """16 states: Triton's plans on an H200 are alike both ways; Mosaic's are segments each way."""
    sizes = dict(batch=batch, channels=channels, state=16)
    for cost in pallas_triton.COSTS:
        assert launch_plan.plan(cost, pallas_triton.PLANS, **sizes) == triton
    for chip, programs_that_fit, expected in (("H200", (2, 2), H200), ("A100", (2, 1), A100)):
        monkeypatch.setattr(device, "compute_capability", lambda chip=chip: CHIPS[chip].capability)
        found = [
            mosaic_plan.segments(
                mosaic_plan.local_cycles(gradient),
                programs=batch * channels // 128,
                per_multiprocessor=programs_that_fit[gradient],
                multiprocessors=CHIPS[chip].multiprocessors,
                steps=length,
                state=16,
            )
            for gradient in (False, True)
        ]
        assert tuple(found) == expected


@pytest.mark.parametrize(
    ("capability", "table"),
    [(None, (9, 0)), ((12, 0), (9, 0)), ((8, 9), (8, 0)), ((7, 5), (8, 0))],
)
def test_other_chips_are_planned_by_the_nearest_class(capability, table, monkeypatch):
    monkeypatch.setattr(device, "compute_capability", lambda: capability)
    for gradient in (False, True):
        assert mosaic_plan.local_cycles(gradient) == mosaic_plan.CYCLES[table][gradient]


def test_a_plan_leaves_no_lane_more_states_than_registers():
    for cost, batch in itertools.product(pallas_triton.COSTS, (1, 8, 512)):
        found = launch_plan.plan(cost, pallas_triton.PLANS, batch=batch, channels=1024, state=32)
        assert 32 * found.vectors // found.groups <= 32


@pytest.mark.parametrize("chip", ["H200", "A100", "RTX 4090", "T4"])
def test_shared_memory_suffices_on_every_chip_or_the_scan_is_refused(chip, monkeypatch):
    limit = CHIPS[chip].shared
    monkeypatch.setattr(device, "shared_memory", lambda: limit)
    for dtype, state in itertools.product((jnp.float32, jnp.bfloat16), launch_plan.STATES):
        arrays = arrays_of(1, 100, 3, state, dtype)
        plan = partial(mosaic_plan.layouts, arrays, softplus=True, reverse=False, chunk=None)
        if chip == "T4" and state == 32:
            with pytest.raises(NotImplementedError, match="bytes of shared memory for 32 states"):
                plan()
            continue
        for layout, gradient in zip(plan(), (False, True), strict=True):
            dtypes = {name: x.dtype for name, x in arrays.items()} | {"order": jnp.int32}
            if gradient:
                dtypes |= {"ybar": dtype, "checkpoints": jnp.float32}
            arrays_there = mosaic_plan.shared(layout, dtypes, gradient)
            assert mosaic_plan.size(arrays_there) + mosaic_plan.RESERVED <= limit


def lowered(implementation, orders=None, reverse=False):
    """StableHLO of the gradient for CUDA."""
    shapes = jax.eval_shape(lambda: arrays_of(8, 64, 96, 8, jnp.bfloat16))

    def loss(arrays, order):
        scan = lambda order: selective_scan(
            **arrays,
            delta_softplus=True,
            order=order,
            reverse=reverse,
            implementation=implementation,
        )
        y = scan(order) if orders is None else jax.vmap(scan)(order)
        return jnp.sum(y.astype(jnp.float32))

    order = jax.ShapeDtypeStruct((64,) if orders is None else (orders, 64), jnp.int32)
    return lowered_for_cuda(jax.grad(loss), shapes, order)


@pytest.mark.parametrize(("orders", "reverse"), [(None, True), (2, False)])
@pytest.mark.parametrize("implementation", PALLAS)
def test_one_launch_each_way_and_no_permuted_copy(implementation, orders, reverse):
    text = lowered(implementation, orders, reverse)
    assert launches(text) == 2
    # Mosaic's B and C, 8 numbers a step, are put into the order of the scan.
    allowed = (
        ("transpose",) if implementation == "pallas_triton" else ("transpose", "gather", "reverse")
    )
    for operation in moved(text):
        assert any(one in operation for one in allowed) and "64x96" not in operation


@pytest.mark.parametrize("implementation", PALLAS)
def test_on_a_mesh_every_device_scans_its_own_sequences(implementation):
    scan = partial(run, implementation=implementation)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    arrays = arrays_of(4, 6, 5, 4)
    order = np.random.default_rng(1).permutation(6).astype(np.int32)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    place = lambda x: jax.device_put(x, rows if x.ndim == 3 else NamedSharding(mesh, P()))
    expected = jax.jit(scan)(arrays, order)
    with jax.set_mesh(mesh):
        compiled = jax.jit(scan).lower(jax.tree.map(place, arrays), order).compile()
        actual = compiled(jax.tree.map(place, arrays), order)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, actual, expected)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-reduce" in text
    assert actual[0][0].sharding.is_equivalent_to(rows, 3)


@pytest.mark.parametrize("implementation", PALLAS)
def test_an_explicit_mesh_is_refused_in_words(implementation):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = lambda x: jax.device_put(x, P("data") if x.ndim == 3 else P())
        arrays = jax.tree.map(place, arrays_of(4, 6, 5, 4))
        with pytest.raises(NotImplementedError, match=r"explicit axes .*AxisType\.Auto"):
            selective_scan(**arrays, implementation=implementation)


@pytest.mark.parametrize("implementation", PALLAS)
def test_lowers_with_double_precision_at_hand(implementation):
    with jax.enable_x64(True):
        assert launches(lowered(implementation)) == 2


def test_a_batch_that_the_mesh_does_not_divide_is_spread_as_far_as_it_goes():
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        assert [batch_axes(n) for n in (4, 6, 3)] == [("data", "fsdp"), ("data",), ()]
    assert batch_axes(4) == ()


@pytest.mark.parametrize("name", [*PALLAS, "chunked"])
def test_forward_mode_is_answered_by_who_has_it(name):
    arrays = arrays_of(1, 4, 3, 4)
    scan = lambda u: selective_scan(**arrays | {"u": u}, implementation=name)
    with pytest.raises(
        NotImplementedError, match=f"{name}.* use implementation='sequential' or 'associ"
    ):
        jax.jvp(scan, (arrays["u"],), (arrays["u"],))


@pytest.mark.parametrize("implementation", PALLAS)
def test_other_numbers_of_states_are_refused_and_the_default_takes_them(implementation):
    arrays = arrays_of(1, 4, 3, 5)
    with pytest.raises(
        NotImplementedError, match="32 states, but A has 5; use implementation='chunk"
    ):
        selective_scan(**arrays, implementation=implementation)
    assert selective_scan(**arrays).shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("platform", "capability", "reason"),
    [
        ("tpu", None, "JAX runs on tpu"),
        ("gpu", (7, 5), "this is sm_75"),
        ("gpu", None, "no NVIDIA GPU"),
    ],
)
def test_devices_without_it_say_so_and_default_to_chunked(
    platform, capability, reason, monkeypatch
):
    from sisma_jax.kernels.selective_scan.api import best_implementation

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(device, "compute_capability", lambda: capability)
    with pytest.raises(NotImplementedError, match=reason):
        pallas_triton.check(16)
    assert best_implementation(16) == "chunked"


def test_a_recent_gpu_defaults_to_a_kernel(monkeypatch):
    from sisma_jax.kernels.selective_scan.api import best_implementation

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(device, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    assert best_implementation(16) == "pallas_triton"
    assert best_implementation(5) == "chunked"
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert best_implementation(16) == "pallas_mosaic"
    monkeypatch.setattr(pallas_triton, "plt", None)  # as in a jax that has dropped it
    with pytest.raises(
        NotImplementedError, match=r"no Triton backend .* implementation='pallas_mosaic'"
    ):
        pallas_triton.check(16)
    assert best_implementation(16) == "pallas_mosaic"
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    assert best_implementation(16) == "chunked"


def test_an_old_jax_has_no_mosaic_kernel_and_says_so(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    with pytest.raises(
        NotImplementedError, match=r"needs jax 0\.11\.2 or newer, .* use implementation='chunked'"
    ):
        selective_scan(**arrays_of(1, 4, 3, 4), implementation="pallas_mosaic")


@pytest.mark.parametrize("implementation", PALLAS[1:])
def test_mosaic_program_in_its_simulator(implementation, monkeypatch):
    """What runs on a GPU, with its shared memory and layouts, and not the body alone.

    Lanes run in step there, so it says nothing of barriers, which are inline code to it.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    monkeypatch.setattr(pallas_mosaic, "_interpret", pallas_mosaic._compile)
    # The simulator's callbacks are ordered, which a choice by platform does not allow for.
    monkeypatch.setattr(launch, "by_platform", lambda default, **others: default)
    # Of inline code it only knows barriers; the rest is as in the interpreter.
    for name in ("copy", "copy_block", "gather", "wait", "obscured", "store_sums"):
        monkeypatch.setattr(pallas_mosaic.Warpgroup, name, getattr(pallas_mosaic.Interpreted, name))
    monkeypatch.setattr(pallas_mosaic, "Interpreted", pallas_mosaic.Warpgroup)
    order = np.random.default_rng(1).permutation(6).astype(np.int32)
    launch._traced_once.clear_cache()  # of launches that are not simulated
    simulator = plgpu.InterpretGPUParams(inline_mgpu="ignore")
    with plgpu.force_gpu_interpret_mode(simulator):
        check(implementation, arrays_of(1, 6, 3, 4), order)
