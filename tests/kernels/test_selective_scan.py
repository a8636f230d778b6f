"""Every implementation of the selective scan against float64 NumPy, values and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import oracle
from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS
from tests.kernels.backends import ALL, IN_JAX
from tests.kernels.checks import (
    OPTIONAL,
    TRIPLES,
    assert_close,
    check_against_oracle,
    check_several_orders,
    check_shared_gradients,
    check_under_checkpoint,
    cotangents,
    make_arrays,
    permutation,
    saturating_arrays,
    some_resets,
    switched,
    vanishing_arrays,
)


@pytest.mark.parametrize("implementation", ALL)
class TestEveryImplementation:
    @pytest.mark.parametrize(
        ("length", "present", "softplus", "ordered", "reverse"),
        [
            (16, (), False, False, False),
            (35, OPTIONAL, True, True, True),
            (8, ("D", "z"), False, True, False),
            (17, ("D", "h0"), True, False, True),
            (7, ("z", "delta_bias"), False, False, True),
            (1, OPTIONAL, True, True, False),
        ],
    )
    def test_values_and_gradients(
        self, implementation, length, present, softplus, ordered, reverse
    ):
        check_against_oracle(
            implementation,
            make_arrays(length, present),
            permutation(length) if ordered else None,
            delta_softplus=softplus,
            reverse=reverse,
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("switches", TRIPLES)
    def test_every_three_options_together(self, implementation, switches):
        present, order, options = switched(switches, length=5)
        check_against_oracle(implementation, make_arrays(5, present), order, **options)

    def test_delta_saturating_and_vanishing(self, implementation):
        arrays = saturating_arrays()
        check_against_oracle(implementation, arrays, delta_softplus=True, reverse=True)

    def test_vanishing_deltas_keep_their_relative_accuracy(self, implementation):
        arrays = vanishing_arrays()
        check_against_oracle(implementation, arrays, delta_softplus=True, reverse=True)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_half_precision_inputs_keep_a_float32_state(self, implementation, dtype):
        check_against_oracle(
            implementation,
            make_arrays(8, dtype=dtype),
            permutation(8),
            delta_softplus=True,
            reverse=True,
        )

    def test_mixed_dtypes_keep_theirs(self, implementation):
        arrays = make_arrays(2)
        arrays |= {k: arrays[k].astype(jnp.bfloat16) for k in ("u", "C", "h0")}
        check_against_oracle(implementation, arrays)

    @pytest.mark.parametrize(
        ("dtype", "ordered", "reverse"),
        [
            (jnp.float32, True, True),
            pytest.param(jnp.bfloat16, False, False, marks=pytest.mark.slow),
        ],
    )
    def test_resets_of_the_state(self, implementation, dtype, ordered, reverse):
        arrays = make_arrays(8, dtype=dtype)
        arrays["A"] = arrays["A"].at[0].set(0)  # without a reset this state would never decay
        check_against_oracle(
            implementation,
            arrays,
            permutation(8) if ordered else None,
            resets=some_resets(8),
            delta_softplus=True,
            reverse=reverse,
        )

    def test_several_orders_are_a_vmap_with_u_unmapped(self, implementation):
        check_several_orders(implementation, length=10, orders=2)

    def test_gradients_that_orders_share_are_rounded_once(self, implementation):
        check_shared_gradients(implementation)

    def test_vmaps_nest_in_either_order(self, implementation):
        length = 10
        arrays = make_arrays(length, ("D",))
        orders = np.stack([permutation(length, seed=k) for k in range(2)])  # NumPy on purpose
        scales = jnp.asarray([0.5, 1.0, 2.0])

        def scan(order, scale):
            scaled = arrays | {"A": scale * arrays["A"]}
            return selective_scan(**scaled, order=order, implementation=implementation)

        over_scales = jax.vmap(scan, in_axes=(None, 0))
        over_orders = jax.vmap(scan, in_axes=(0, None))
        outer = jax.jit(lambda s: jax.vmap(over_scales, in_axes=(0, None))(orders, s))(scales)
        inner = jax.jit(lambda s: jax.vmap(over_orders, in_axes=(None, 0))(orders, s))(scales)
        for k, s in itertools.product(range(2), range(3)):
            scaled = arrays | {"A": scales[s] * arrays["A"]}
            expected, _ = oracle.forward(scaled, order=orders[k])
            assert_close(outer[k, s], expected, 1e-5)
            assert_close(inner[s, k], expected, 1e-5)

    def test_remat_inside_a_scan_over_layers(self, implementation):
        length, layers = 10, 2
        arrays = make_arrays(length, ("D",))
        A = jnp.stack([arrays["A"] * (1 + k) for k in range(layers)])
        orders = np.stack([permutation(length, seed=k) for k in range(layers)])

        @jax.checkpoint
        def layer(u, A_and_order):
            A, order = A_and_order
            inputs = arrays | {"u": u, "A": A}
            y = selective_scan(**inputs, order=order, implementation=implementation)
            return u + 0.1 * y, None

        def loss(u, A):
            return jnp.sum(jax.lax.scan(layer, u, (A, jnp.asarray(orders)))[0] ** 2)

        ubar, Abar = jax.jit(jax.grad(loss, (0, 1)))(arrays["u"], A)

        inputs = []
        u = np.asarray(arrays["u"], np.float64)
        for k in range(layers):
            inputs.append(arrays | {"u": u, "A": A[k]})
            u = u + 0.1 * oracle.forward(inputs[k], order=orders[k])[0]
        expected = 2 * u
        for k in reversed(range(layers)):
            gradients = oracle.gradients(inputs[k], 0.1 * expected, 0, order=orders[k])
            assert_close(Abar[k], gradients["A"], 5e-5, "A")
            expected = expected + gradients["u"]
        assert_close(ubar, expected, 5e-5, "u")

    def test_batch_sharded_over_four_devices(self, implementation):
        if jax.device_count() < 4:
            pytest.skip("needs four devices")
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        check_against_oracle(
            implementation,
            make_arrays(18, batch=8),
            permutation(18),
            place=lambda x: jax.device_put(
                x, NamedSharding(mesh, P("data") if x.ndim == 3 else P())
            ),
            delta_softplus=True,
            reverse=True,
        )

    def test_gradient_of_an_order_has_no_scatter(self, implementation):
        if implementation.startswith("pallas"):
            pytest.skip("interpreted here; test_pallas_kernels looks at what a GPU gets")
        length, orders = 18, 2
        arrays = make_arrays(length)
        order = jnp.asarray(np.stack([permutation(length, seed=k) for k in range(orders)]))

        def loss(arrays, order):
            y = selective_scan(**arrays, order=order, implementation=implementation)
            return jnp.sum(y**2)

        one = jax.jit(jax.grad(loss)).lower(arrays, order[0])
        several = jax.jit(jax.grad(lambda a: jnp.sum(jax.vmap(loss, (None, 0))(a, order))))
        assert "scatter" not in one.as_text()
        assert "scatter" not in several.lower(arrays).as_text()


@pytest.mark.parametrize("implementation", IN_JAX)
def test_gradients_under_checkpoint_for_decays_that_range_widely(implementation):
    check_under_checkpoint(implementation, length=37)


def test_any_three_options_take_all_eight_settings():
    for three in itertools.combinations(zip(*TRIPLES, strict=True), 3):
        assert len(set(zip(*three, strict=True))) == 8


def test_every_implementation_is_tested():
    names = [getattr(name, "values", (name,))[0] for name in ALL]  # parameters with marks
    assert names == list(IMPLEMENTATIONS)


def test_oracle_gradients_agree_with_central_differences():
    length = 5
    options = dict(
        delta_softplus=True, order=permutation(length), reverse=True, resets=some_resets(length)
    )
    arrays = {k: np.asarray(x, np.float64) for k, x in make_arrays(length).items()}
    ybar, hbar = (np.asarray(x, np.float64) for x in cotangents(make_arrays(length)))
    gradients = oracle.gradients(arrays, ybar, hbar, **options)

    def loss(changed):
        y, last_state = oracle.forward(changed, **options)
        return np.sum(ybar * y) + np.sum(hbar * last_state)

    rng = np.random.default_rng(5)
    for name, x in arrays.items():
        direction = rng.standard_normal(x.shape)
        high, low = ({**arrays, name: x + sign * 1e-6 * direction} for sign in (1, -1))
        slope = (loss(high) - loss(low)) / 2e-6
        np.testing.assert_allclose(np.sum(gradients[name] * direction), slope, rtol=1e-6)
