"""What surrounds the Pallas kernels: the mapped axes of `jax.vmap`, the grid, padding, sharing."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan.pallas import mosaic_plan, triton
from sisma_jax.kernels.selective_scan.pallas.grid import check_grid
from tests.kernels.backends import PALLAS
from tests.kernels.checks import make_arrays, permutation
from tests.lowering import equations, launches, lowered_for_cuda


def shapes_of(batch, length, channels, state):
    """The required arguments."""
    shapes = jax.eval_shape(partial(make_arrays, length, (), batch=1, channels=1, state=state))
    sizes = {"u": "bld", "delta": "bld", "A": "dn", "B": "bln", "C": "bln"}
    letters = dict(b=batch, l=length, d=channels, n=state)
    return {
        name: jax.ShapeDtypeStruct(tuple(letters[x] for x in axes), shapes[name].dtype)
        for name, axes in sizes.items()
    }


@pytest.mark.parametrize("implementation", PALLAS)
def test_the_plan_counts_the_scans_of_nested_vmaps(implementation, monkeypatch):
    module = {"pallas_triton": triton, "pallas_mosaic": mosaic_plan}[implementation]
    counted = set()

    def spied(*arguments, **sizes):
        counted.add(sizes.get("batch", sizes.get("programs")))
        return chooser(*arguments, **sizes)

    name = "plan" if module is triton else "segments"
    chooser = getattr(module, name)
    monkeypatch.setattr(module, name, spied)
    arrays = make_arrays(6, ("D",), batch=5)
    orders = jnp.stack([permutation(6, seed) for seed in range(3)])

    def loss(arrays, scales):
        def one(order, scale):
            scaled = arrays | {"D": scale * arrays["D"]}
            return selective_scan(**scaled, order=order, implementation=implementation)

        several = jax.vmap(one, in_axes=(0, None))
        return jnp.sum(jax.vmap(several, in_axes=(None, 0))(orders, scales))

    jax.jit(jax.grad(loss)).lower(arrays, jnp.ones(2))
    assert max(counted) == 2 * 3 * 5


def test_layers_of_equal_shapes_share_one_kernel_each_way():
    shapes = shapes_of(2, 8, 6, 4)

    def loss(arrays):
        u = 2 * arrays["u"]
        for _ in range(4):
            u = u + selective_scan(**arrays | {"u": u}, implementation="pallas_triton")
        return jnp.sum(2 * u)

    assert launches(lowered_for_cuda(jax.grad(loss), shapes)) == 2


def test_sums_over_programs_read_no_rows_past_the_last_step():
    """The backward kernels leave such rows of the gradients of B and C unwritten."""
    arrays = make_arrays(6, ())
    loss = lambda a: jnp.sum(selective_scan(**a, implementation="pallas_triton"))
    found = jax.make_jaxpr(jax.grad(loss))(arrays)
    summed = [
        equation.invars[0].aval.shape
        for equation in equations(found.jaxpr)
        if equation.primitive.name == "reduce_sum" and equation.invars[0].aval.ndim == 4
    ]
    (batch, length, _), (_, state) = arrays["u"].shape, arrays["A"].shape
    assert [(shape[0], *shape[2:]) for shape in summed] == [(batch, length, state)] * 2
    rows = {
        variable.aval.shape[2]
        for equation in equations(found.jaxpr)
        for variable in equation.outvars
        if variable.aval.shape[:1] + variable.aval.shape[3:] == (batch, state)
    }
    assert max(rows) > length  # the kernel has such rows


@pytest.mark.parametrize("length", [5, 8])
def test_an_order_ends_with_a_whole_load(length, monkeypatch):
    given, run = [], triton._run

    def spied(launch):
        given.append(launch.inputs["order"].shape)
        return run(launch)

    monkeypatch.setattr(triton, "_run", spied)
    scan = partial(selective_scan, **make_arrays(length, ()), implementation="pallas_triton")
    jax.eval_shape(lambda order: scan(order=order), permutation(length))
    assert given == [(8,)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2**16, 1, 1), r"at most 65535 sequences .*, but the batch has 65536 sequences per"),
        ((1, 1, 2**16), r"but jax\.vmap maps 65536 scans; .* or use implementation='chunked'"),
        ((2**15, 2**14, 4), r"at most 2147483646 programs, but 4 mapped x 32768 seq.* 2147483648"),
    ],
)
def test_a_grid_that_no_gpu_launches_is_refused(sizes, message):
    check_grid("pallas_mosaic", 2**16 - 1, 2**14, 1)
    with pytest.raises(NotImplementedError, match=message):
        check_grid("pallas_mosaic", *sizes)


@pytest.mark.parametrize("implementation", PALLAS)
def test_only_mosaic_has_a_limit_of_sequences(implementation):
    scan = lambda a: selective_scan(**a, implementation=implementation)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), shapes_of(1, 1, 3, 4))
    calls = [
        (scan, shapes_of(2**16, 1, 3, 4)),
        (
            jax.vmap(lambda A: scan(ones | {"A": A})),
            jax.ShapeDtypeStruct((2**16, 3, 4), jnp.float32),
        ),
    ]
    for function, argument in calls:
        if implementation == "pallas_triton":
            jax.eval_shape(function, argument)
        else:
            with pytest.raises(NotImplementedError, match="at most 65535 sequences"):
                jax.eval_shape(function, argument)


def test_triton_has_no_limit_of_channels():
    """JAX moves blocks of channels beyond the 65,535 of the grid's y into x."""
    scan = lambda a: selective_scan(**a, implementation="pallas_triton")
    text = lowered_for_cuda(scan, shapes_of(3, 1, 2**22, 4))
    assert re.findall(r"grid_[xyz] = (\d+)", text) == [str(3 * 2**16), "1", "1"]


def test_a_grid_is_checked_before_the_kernel_is_traced():
    with pytest.raises(NotImplementedError, match="'pallas_triton' launches at most"):
        jax.eval_shape(
            partial(selective_scan, implementation="pallas_triton"),
            **shapes_of(2**26, 1, 2**12, 4),
        )
