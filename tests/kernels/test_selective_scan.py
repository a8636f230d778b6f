"""Every implementation of the selective scan against float64 NumPy, values and gradients."""

import functools
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
from tests.kernels.backends import ALL

BATCH, CHANNELS, STATE = 2, 6, 4
OPTIONAL = ("D", "z", "delta_bias", "h0")
TRIPLES = [
    (a, b, c, d, a ^ b ^ c, b ^ c ^ d, a ^ c ^ d)
    for a, b, c, d in itertools.product([False, True], repeat=4)
]
"""An orthogonal array of strength 3: 16 of the 128 settings of seven switches."""


def make_arrays(length, present=OPTIONAL, *, batch=BATCH, dtype=jnp.float32, seed=0):
    """Arguments by name, None where not `present`; delta suits softplus and its absence."""
    rng = np.random.default_rng(seed)
    shapes = {
        "u": (batch, length, CHANNELS),
        "delta": (batch, length, CHANNELS),
        "A": (CHANNELS, STATE),
        "B": (batch, length, STATE),
        "C": (batch, length, STATE),
        "D": (CHANNELS,),
        "z": (batch, length, CHANNELS),
        "delta_bias": (CHANNELS,),
        "h0": (batch, CHANNELS, STATE),
    }
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["delta"] = rng.uniform(0.05, 1.5, shapes["delta"])
    arrays["delta_bias"] = rng.uniform(0.0, 0.5, CHANNELS)
    arrays["A"] = -rng.uniform(0.2, 4.0, shapes["A"])
    optional_absent = set(OPTIONAL) - set(present)
    return {k: None if k in optional_absent else jnp.asarray(x, dtype) for k, x in arrays.items()}


def permutation(length, seed=1):
    return np.random.default_rng(seed).permutation(length).astype(np.int32)


def cotangents(length, dtype=jnp.float32, batch=BATCH):
    rng = np.random.default_rng(7)
    ybar = jnp.asarray(rng.standard_normal((batch, length, CHANNELS)), dtype)
    return ybar, jnp.asarray(rng.standard_normal((batch, CHANNELS, STATE)), jnp.float32)


@functools.cache
def compiled(implementation, **options):
    """(arrays, order, cotangents) -> ((y, last_state), gradients by name), jitted as one."""

    @jax.jit
    def run(arrays, order, bars):
        scan = lambda a: selective_scan(
            **a, order=order, return_last_state=True, implementation=implementation, **options
        )
        outputs, pull_back = jax.vjp(scan, arrays)
        return outputs, pull_back(bars)[0]

    return run


def assert_close(actual, expected, tolerance, what=""):
    actual = np.asarray(actual).astype(np.float64)
    assert actual.shape == expected.shape, what
    assert np.isfinite(actual).all(), what
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-300)
    assert error < tolerance, f"{what}: relative error {error:.1e}"


def check_against_oracle(
    implementation,
    arrays,
    order=None,
    *,
    y_tolerance=1e-5,
    gradient_tolerance=5e-5,
    place=lambda x: x,
    **options,
):
    """`place` puts the arrays where the scan is to find them."""
    bars = cotangents(arrays["u"].shape[1], arrays["u"].dtype, arrays["u"].shape[0])
    outputs, gradients = compiled(implementation, **options)(
        *jax.tree.map(place, (arrays, order, bars))
    )
    y, last_state = oracle.forward(arrays, order=order, **options)
    assert outputs[0].dtype == arrays["u"].dtype
    assert_close(outputs[0], y, y_tolerance, "y")
    assert outputs[1].dtype == jnp.float32
    assert_close(outputs[1], last_state, 1e-5, "last_state")
    for name, expected in oracle.gradients(arrays, *bars, order=order, **options).items():
        assert gradients[name].dtype == arrays[name].dtype
        assert_close(gradients[name], expected, gradient_tolerance, f"gradient of {name}")


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
        length = 5
        *has, softplus, ordered, reverse = switches
        present = [name for name, wanted in zip(OPTIONAL, has, strict=True) if wanted]
        check_against_oracle(
            implementation,
            make_arrays(length, present),
            permutation(length) if ordered else None,
            delta_softplus=softplus,
            reverse=reverse,
        )

    def test_delta_saturating_and_vanishing(self, implementation):
        arrays = make_arrays(17, ("D", "h0"))
        raw = np.random.default_rng(3).uniform(-16, 40, arrays["delta"].shape)
        raw[0, :, 0], raw[0, :, 1], raw[1, :, 2] = 40, -16, np.linspace(-16, 40, 17)
        arrays["delta"] = jnp.asarray(raw, jnp.float32)
        check_against_oracle(implementation, arrays, delta_softplus=True, reverse=True)

    def test_vanishing_deltas_keep_their_relative_accuracy(self, implementation):
        arrays = make_arrays(17, ("D", "h0"))
        arrays["delta"] = jnp.full_like(arrays["delta"], -16.0)
        for name in ("D", "h0"):
            arrays[name] = jnp.zeros_like(arrays[name])
        check_against_oracle(implementation, arrays, delta_softplus=True, reverse=True)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_half_precision_inputs_keep_a_float32_state(self, implementation, dtype):
        check_against_oracle(
            implementation,
            make_arrays(8, dtype=dtype),
            permutation(8),
            y_tolerance=1e-2,
            gradient_tolerance=1e-2,
            delta_softplus=True,
            reverse=True,
        )

    def test_mixed_dtypes_keep_theirs(self, implementation):
        arrays = make_arrays(2)
        arrays |= {k: arrays[k].astype(jnp.bfloat16) for k in ("u", "C", "h0")}
        check_against_oracle(implementation, arrays, y_tolerance=1e-2, gradient_tolerance=1e-2)

    def test_several_orders_are_a_vmap_with_u_unmapped(self, implementation):
        length, orders = 10, 2
        shared = make_arrays(length, ("D", "delta_bias"))
        each = [make_arrays(length, ("D", "delta_bias"), seed=10 + k) for k in range(orders)]
        each = [a | {"u": shared["u"]} for a in each]
        order = np.stack([permutation(length, seed=k) for k in range(orders)])
        names = ("delta", "A", "B", "C", "D", "delta_bias")
        stacked = {name: jnp.stack([a[name] for a in each]) for name in names}
        bars = [jnp.stack(b) for b in zip(*[cotangents(length)] * orders, strict=True)]

        def scan(u, mapped, order):
            return selective_scan(
                u, **mapped, order=order, return_last_state=True, implementation=implementation
            )

        @jax.jit
        def run(u, stacked, order, bars):
            several = jax.vmap(scan, in_axes=(None, 0, 0))
            outputs, pull_back = jax.vjp(lambda u, s: several(u, s, order), u, stacked)
            return outputs, pull_back(tuple(bars))

        (y, last_state), (ubar, stacked_bar) = run(shared["u"], stacked, jnp.asarray(order), bars)
        ubar_expected = 0
        for k in range(orders):
            expected = oracle.forward(each[k], order=order[k])
            assert_close(y[k], expected[0], 1e-5)
            assert_close(last_state[k], expected[1], 1e-5)
            gradients = oracle.gradients(each[k], bars[0][k], bars[1][k], order=order[k])
            ubar_expected = ubar_expected + gradients["u"]
            for name in names:
                assert_close(stacked_bar[name][k], gradients[name], 5e-5, name)
        assert_close(ubar, ubar_expected, 5e-5, "u")

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


def test_any_three_options_take_all_eight_settings():
    for three in itertools.combinations(zip(*TRIPLES, strict=True), 3):
        assert len(set(zip(*three, strict=True))) == 8


def test_every_implementation_is_tested():
    names = [getattr(name, "values", (name,))[0] for name in ALL]  # parameters with marks
    assert names == list(IMPLEMENTATIONS)


def test_oracle_gradients_agree_with_central_differences():
    length = 5
    options = dict(delta_softplus=True, order=permutation(length), reverse=True)
    arrays = {k: np.asarray(x, np.float64) for k, x in make_arrays(length).items()}
    ybar, hbar = (np.asarray(x, np.float64) for x in cotangents(length))
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
