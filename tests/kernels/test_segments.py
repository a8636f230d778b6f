"""Scans whose length is split over devices, against float64 of the whole length."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan
from tests.kernels.backends import ALL
from tests.kernels.checks import (
    OPTIONAL,
    check_against_oracle,
    check_shared_gradients,
    cotangents,
    make_arrays,
    permutation,
    some_resets,
)


def mesh_of(*axis_types, sizes=(4,), names=("sequence",)):
    return jax.make_mesh(sizes, names, axis_types=axis_types or (AxisType.Auto,) * len(sizes))


def check(implementation, reverse):
    arrays = make_arrays(20, OPTIONAL)
    arrays["delta"] = arrays["delta"].at[:, [3, 14]].set(-200)  # steps of 0 after softplus
    with jax.set_mesh(mesh_of()):
        check_against_oracle(
            implementation,
            arrays,
            resets=some_resets(20, seed=6),
            delta_softplus=True,
            reverse=reverse,
            axis_name="sequence",
        )


@pytest.mark.parametrize(("implementation", "reverse"), [("associative", False), (None, True)])
def test_values_and_gradients(implementation, reverse):
    check(implementation, reverse)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", ALL)
def test_every_implementation(implementation, reverse):
    check(implementation, reverse)


@pytest.mark.parametrize(
    "implementation", ["chunked", pytest.param("pallas_triton", marks=pytest.mark.slow)]
)
def test_batch_and_length_over_two_axes_gather_states_alone(implementation):
    """Whole arrays on a mesh: each device scans a part of the rows of a part of the sequences."""
    length, channels, state, batch = 16, 40, 4, 4
    arrays = make_arrays(length, ("D",), batch=batch, channels=channels, state=state)
    mesh = mesh_of(sizes=(2, 2), names=("data", "sequence"))
    rows = NamedSharding(mesh, P("data", "sequence"))
    place = lambda x: jax.device_put(x, rows if x.ndim == 3 else NamedSharding(mesh, P()))
    scan = partial(selective_scan, axis_name="sequence", implementation=implementation)
    gradient = jax.grad(lambda arrays: jnp.sum(scan(**arrays) ** 2))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient).lower(jax.tree.map(place, arrays)).compile()
        found = compiled(jax.tree.map(place, arrays))
    loss = lambda arrays: jnp.sum(selective_scan(**arrays, implementation="sequential") ** 2)
    for name, expected in jax.jit(jax.grad(loss))(arrays).items():
        if expected is not None:
            tolerance = 5e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found[name], expected, atol=tolerance, err_msg=name)
    assert found["u"].sharding.is_equivalent_to(rows, 3)
    gathered = re.findall(r"= \(?f32\[([\d,]*)\]\S* all-gather", compiled.as_text())
    of_a_segment = batch // 2 * channels * state
    assert gathered
    for shape in gathered:
        assert math.prod(map(int, shape.split(","))) <= 2 * of_a_segment


@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True])
def test_within_a_shard_map(reverse):
    arrays = make_arrays(12, OPTIONAL)
    mesh = mesh_of(sizes=(2, 2), names=("data", "sequence"))
    rows, sequences = P("data", "sequence"), P("data")
    specs = {name: P() for name in arrays} | {"h0": sequences}
    specs |= {name: rows for name in ("u", "delta", "B", "C", "z")}
    options = dict(delta_softplus=True, reverse=reverse, return_last_state=True)

    def scan(**changes):
        return lambda arrays: selective_scan(**arrays, **options, **changes)

    mapped = jax.shard_map(
        scan(axis_name="sequence"),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=(rows, sequences),
        check_vma=False,
    )
    bars = cotangents(arrays)
    found, expected = (
        jax.jit(lambda arrays, scan=scan: (scan(arrays), jax.vjp(scan, arrays)[1](bars)))(arrays)
        for scan in (mapped, scan(implementation="sequential"))
    )
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5 * np.abs(y).max())
    jax.tree.map(close, found, expected)


def test_mapped_over_parameters():
    arrays = make_arrays(8, ("h0",))
    A = jnp.stack([arrays["A"], 2 * arrays["A"]])

    def run(**options):
        def several(A, shared):
            scan = lambda A: selective_scan(**arrays | shared | {"A": A}, **options)
            return jax.vmap(jax.checkpoint(scan))(A)

        loss = lambda A, shared: jnp.sum(several(A, shared) ** 2)
        return jax.jit(jax.grad(loss, (0, 1)))(A, {name: arrays[name] for name in ("u", "h0")})

    with jax.set_mesh(mesh_of()):
        found = run(axis_name="sequence")
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5 * np.abs(y).max())
    jax.tree.map(close, found, run())


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sequential", "chunked", "pallas_triton"])
def test_gradients_that_mapped_scans_share_are_rounded_once(implementation):
    with jax.set_mesh(mesh_of()):
        check_shared_gradients(implementation, axis_name="sequence")


@pytest.mark.parametrize(
    ("axis_name", "length", "options", "kind", "error", "message"),
    [
        (
            "rows",
            8,
            {},
            AxisType.Auto,
            ValueError,
            "is 'rows', .* mesh are 'sequence'; call it und",
        ),
        ("sequence", 10, {}, AxisType.Auto, ValueError, "of 10 cannot be split over the 4 devices"),
        (
            "sequence",
            8,
            {"order": permutation(8)},
            AxisType.Auto,
            ValueError,
            "has no order, becau",
        ),
        ("sequence", 8, {}, AxisType.Explicit, NotImplementedError, "explicit axis of the mesh"),
    ],
)
def test_what_cannot_be_split_is_refused(axis_name, length, options, kind, error, message):
    arrays = make_arrays(length, ())
    with jax.set_mesh(mesh_of(kind)), pytest.raises(error, match=message):
        selective_scan(**arrays, **options, axis_name=axis_name)


def test_a_shard_map_that_checks_what_varies_is_refused():
    mesh = mesh_of()
    arrays = {name: x for name, x in make_arrays(20, ()).items() if x is not None}
    specs = {name: P(None, "sequence") if x.ndim == 3 else P() for name, x in arrays.items()}
    scan = jax.shard_map(
        lambda arrays: selective_scan(**arrays, axis_name="sequence"),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=P(None, "sequence"),
    )
    with pytest.raises(NotImplementedError, match="needs check_vma=False"):
        scan(arrays)


def test_without_a_mesh_nothing_is_split():
    with pytest.raises(ValueError, match=r"is 'sequence', but the axes .* are none"):
        selective_scan(**make_arrays(8, ()), axis_name="sequence")
