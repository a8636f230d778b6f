"""Checks of one implementation of the selective scan against float64 NumPy, on any device."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import oracle
from sisma_jax.kernels.selective_scan.pallas import launch
from sisma_jax.kernels.selective_scan.pallas.plan import MAX_STATES_PER_LANE, STATES, Plan

BATCH, CHANNELS, STATE = 2, 6, 4
OPTIONAL = ("D", "z", "delta_bias", "h0")
TRIPLES = [
    (a, b, c, d, a ^ b ^ c, b ^ c ^ d, a ^ c ^ d)
    for a, b, c, d in itertools.product([False, True], repeat=4)
]
"""An orthogonal array of strength 3: 16 of the 128 settings of seven switches (the optional
arguments, softplus, order, reverse)."""
TOLERANCE = {"float32": (1e-5, 5e-5), "bfloat16": (1e-2, 1e-2), "float16": (1e-2, 1e-2)}
"""Limits of max |error| / max |reference| of y and of each gradient, by the dtype of u."""
LAST_STATE_TOLERANCE = 1e-5


class DeviceCase(NamedTuple):
    """Switches and sizes of one scan; the plan is a number among the plans of the kernel."""

    switches: tuple[bool, ...]
    plan: int
    state: int
    dtype: str
    length: int


def _device_cases():
    letters = itertools.product([0, 1], repeat=4)
    for switches, (a, b, c, d) in zip(TRIPLES, letters, strict=True):
        plan, state = 2 * (a ^ b) + (c ^ d), 2 * (a ^ b ^ d) + (b ^ d)
        # Two orthogonal Latin squares, the second one by multiplication with 2 in GF(4).
        dtype, length = plan ^ (0, 2, 3, 1)[state], plan ^ state
        yield DeviceCase(
            switches,
            plan,
            STATES[state],
            ("float32", "bfloat16", "float16", "float32")[dtype],
            (1, 16, 37, 131)[length],
        )


DEVICE_CASES = [*_device_cases()]
"""TRIPLES with further columns: every plan meets every number of states, dtype, length and both
settings of every switch, and so does every number of states, but for the switch of D. Every dtype
meets every length."""


def make_arrays(
    length,
    present=OPTIONAL,
    *,
    batch=BATCH,
    channels=CHANNELS,
    state=STATE,
    dtype=jnp.float32,
    seed=0,
):
    """Arguments by name, None where not `present`; delta suits softplus and its absence."""
    rng = np.random.default_rng(seed)
    shapes = {
        "u": (batch, length, channels),
        "delta": (batch, length, channels),
        "A": (channels, state),
        "B": (batch, length, state),
        "C": (batch, length, state),
        "D": (channels,),
        "z": (batch, length, channels),
        "delta_bias": (channels,),
        "h0": (batch, channels, state),
    }
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["delta"] = rng.uniform(0.05, 1.5, shapes["delta"])
    arrays["delta_bias"] = rng.uniform(0.0, 0.5, channels)
    arrays["A"] = -rng.uniform(0.2, 4.0, shapes["A"])
    optional_absent = set(OPTIONAL) - set(present)
    return {k: None if k in optional_absent else jnp.asarray(x, dtype) for k, x in arrays.items()}


def saturating_arrays():
    """Arguments whose delta before softplus reaches from -16 to 40."""
    arrays = make_arrays(17, ("D", "h0"))
    raw = np.random.default_rng(3).uniform(-16, 40, arrays["delta"].shape)
    raw[0, :, 0], raw[0, :, 1], raw[1, :, 2] = 40, -16, np.linspace(-16, 40, 17)
    return arrays | {"delta": jnp.asarray(raw, jnp.float32)}


def vanishing_arrays():
    """Arguments whose delta before softplus is -16, and whose outputs are proportional to it."""
    arrays = make_arrays(17, ("D", "h0"))
    arrays["delta"] = jnp.full_like(arrays["delta"], -16.0)
    return arrays | {name: jnp.zeros_like(arrays[name]) for name in ("D", "h0")}


def some_resets(length, batch=BATCH, seed=4):
    """Resets at a third of the rows, among them the first and the last of the first sequence."""
    resets = np.random.default_rng(seed).random((batch, length)) < 1 / 3
    resets[0, [0, -1]] = True
    return resets


def permutation(length, seed=1):
    return np.random.default_rng(seed).permutation(length).astype(np.int32)


def switched(switches, length):
    """(names of the optional arguments, order, options) of a row of TRIPLES."""
    *has, softplus, ordered, reverse = switches
    present = [name for name, wanted in zip(OPTIONAL, has, strict=True) if wanted]
    order = permutation(length) if ordered else None
    return present, order, dict(delta_softplus=softplus, reverse=reverse)


def cotangents(arrays):
    """Cotangents of y and of the last state."""
    rng = np.random.default_rng(7)
    u, (channels, state) = arrays["u"], arrays["A"].shape
    ybar = jnp.asarray(rng.standard_normal(u.shape), u.dtype)
    hbar = rng.standard_normal((len(u), channels, state))
    return ybar, jnp.asarray(hbar, jnp.float32)


@functools.cache
def compiled(implementation, **options):
    """(arrays, order, cotangents, resets) -> ((y, last_state), gradients by name), jitted as one.

    Options are those that are not arrays.
    """

    @jax.jit
    def run(arrays, order, bars, resets=None):
        scan = lambda a: selective_scan(
            **a, order=order, resets=resets, return_last_state=True,
            implementation=implementation, **options,
        )  # fmt: skip
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
    resets=None,
    place=lambda x: x,
    parts=None,
    axis_name=None,
    **options,
):
    """Values and gradients against float64.

    Args:
      place: puts an array where the scan is to find it.
      parts: parts to compare, as of `small_parts`, where float64 of everything would take too long.
    """
    bars = cotangents(arrays)
    outputs, gradients = compiled(implementation, axis_name=axis_name, **options)(
        *jax.tree.map(place, (arrays, order, bars, resets))
    )
    assert outputs[0].dtype == arrays["u"].dtype
    assert outputs[1].dtype == jnp.float32
    present = {name: x for name, x in arrays.items() if x is not None}
    for name, x in present.items():
        assert gradients[name].dtype == x.dtype
    names = ("y", "last_state", *present)
    results = dict(zip(names, (*outputs, *(gradients[name] for name in present)), strict=True))
    bars = {"y": bars[0], "last_state": bars[1]}
    options["resets"] = resets
    for compared, cut in parts or [(names, lambda name, x: x)]:
        cut_all = lambda tree, cut=cut: {n: cut(n, np.asarray(x)) for n, x in tree.items()}
        _compare(
            {name: x for name, x in cut_all(results).items() if name in compared},
            dict.fromkeys(arrays) | cut_all(present),
            cut_all(bars),
            order,
            options,
        )


def _compare(results, arrays, bars, order, options):
    y_tolerance, gradient_tolerance = TOLERANCE[arrays["u"].dtype.name]
    y, last_state = oracle.forward(arrays, order=order, **options)
    expected = oracle.gradients(arrays, bars["y"], bars["last_state"], order=order, **options)
    expected |= {"y": y, "last_state": last_state}
    tolerances = {"y": y_tolerance, "last_state": LAST_STATE_TOLERANCE}
    for name, actual in results.items():
        what = name if name in tolerances else f"gradient of {name}"
        assert_close(actual, expected[name], tolerances.get(name, gradient_tolerance), what)


_AXES = {
    "u": "bld", "delta": "bld", "z": "bld", "y": "bld", "B": "bln", "C": "bln",
    "A": "dn", "D": "d", "delta_bias": "d", "h0": "bdn", "last_state": "bdn",
}  # fmt: skip


def small_parts(arrays, channels=8):
    """Two parts of a large scan that hold every kind of result: a few channels of all sequences,
    and all channels of the last sequence, for the gradients of B and C, which are sums over them.
    """
    few = np.linspace(0, arrays["u"].shape[2] - 1, channels).round().astype(int)

    def cut(sequences, channels, name, x):
        part = {"b": sequences, "d": channels}
        return x[tuple(part.get(axis, slice(None)) for axis in _AXES[name])]

    of_one = ("B", "C")
    everything = slice(None)
    return [
        ([name for name in _AXES if name not in of_one], functools.partial(cut, everything, few)),
        (of_one, functools.partial(cut, slice(-1, None), everything)),
    ]


def check_several_orders(implementation, length, orders, **sizes):
    """`jax.vmap` over orders, with u unmapped, is each order by itself."""
    shared = make_arrays(length, ("D", "delta_bias"), **sizes)
    each = [make_arrays(length, ("D", "delta_bias"), seed=10 + k, **sizes) for k in range(orders)]
    each = [a | {"u": shared["u"]} for a in each]
    order = np.stack([permutation(length, seed=k) for k in range(orders)])
    names = ("delta", "A", "B", "C", "D", "delta_bias")
    stacked = {name: jnp.stack([a[name] for a in each]) for name in names}
    bars = [jnp.stack(b) for b in zip(*[cotangents(shared)] * orders, strict=True)]

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


def check_shared_gradients(implementation, orders=16, axis_name=None):
    """Gradients of 16-bit arguments that all orders share, in pairs whose terms nearly cancel.

    A length that is split over `axis_name` has 16 sets of A instead of orders.

    If every term were rounded to 16 bits, the sums would be off by a tenth of their largest value.
    """
    length, shared = 5 if axis_name is None else 8, ("u", "B", "C", "z")
    arrays = make_arrays(length, ("z",))
    arrays |= {name: arrays[name].astype(jnp.bfloat16) for name in shared}
    order = None
    if axis_name is None:
        order = np.repeat([permutation(length, seed=k) for k in range(orders // 2)], 2, axis=0)
    A = jnp.stack([arrays["A"] * (1 + 0.01 * (k % 2)) for k in range(orders)])
    ybar = cotangents(arrays)[0]
    ybars = jnp.stack([(-1) ** k * ybar for k in range(orders)])

    @jax.jit
    def gradients(given, A, order, ybars):
        def several(given):
            scan = lambda A, order: selective_scan(
                **arrays | given | {"A": A},
                order=order,
                axis_name=axis_name,
                implementation=implementation,
            )
            return jax.vmap(scan)(A, order)

        return jax.vjp(several, given)[1](ybars)[0]

    found = gradients({name: arrays[name] for name in shared}, A, order, ybars)
    terms = [
        oracle.gradients(
            arrays | {"A": A[k]}, ybars[k], 0, order=None if order is None else order[k]
        )
        for k in range(orders)
    ]
    for name in shared:
        assert found[name].dtype == jnp.bfloat16
        assert_close(found[name], sum(term[name] for term in terms), 4e-3, name)


def wide_ranging_arrays(length, channels=CHANNELS, state=STATE):
    """Arguments whose decays range from almost 1 to 0, exp(-400), side by side in a sequence."""
    arrays = make_arrays(length, channels=channels, state=state)
    rng = np.random.default_rng(11)
    over_decades = lambda low, high, like: jnp.asarray(
        10 ** rng.uniform(np.log10(low), np.log10(high), like.shape), jnp.float32
    )
    delta, A = over_decades(1e-5, 20, arrays["delta"]), -over_decades(1e-3, 20, arrays["A"])
    return arrays | {"delta": delta, "A": A, "delta_bias": None}


def check_under_checkpoint(implementation, **sizes):
    """Gradients of `jax.checkpoint` of the scan, for decays that range widely."""
    arrays = wide_ranging_arrays(**sizes)
    bars = cotangents(arrays)

    @jax.jit
    def gradients(arrays, bars):
        scan = lambda arrays: selective_scan(
            **arrays, return_last_state=True, implementation=implementation
        )
        return jax.vjp(jax.checkpoint(scan), arrays)[1](bars)[0]

    found = gradients(arrays, bars)
    for name, expected in oracle.gradients(arrays, *bars).items():
        assert_close(found[name], expected, 5e-5, name)


def check_device_case(implementation, case, plan=None):
    """A `DeviceCase`; the channels leave the last block of `plan` incomplete."""
    present, order, options = switched(case.switches, case.length)
    # Programs of Mosaic have 128 channels; its plans are numbers of segments.
    block = 32 if plan is None else getattr(plan, "channels", 128)
    arrays = make_arrays(
        case.length,
        present,
        channels=block + 3,
        state=case.state,
        dtype=jnp.dtype(case.dtype),
    )
    check_against_oracle(implementation, arrays, order, **options)


def use_plan(monkeypatch, backend, case):
    """Run the kernels of `backend` by the plan of a `DeviceCase`, and return the plan."""
    fits = lambda plan: (
        not isinstance(plan, Plan)
        or plan.vectors * case.state // plan.groups <= MAX_STATES_PER_LANE
    )
    fitting = [plan for plan in backend.plans if fits(plan)]
    plan = fitting[case.plan % len(fitting)]
    monkeypatch.setattr(launch, "chosen", lambda candidates, choose: plan)
    compiled.cache_clear()  # of programs by other plans
    return plan


def check_same_bits(implementation, arrays, order=None, *, launches=3, **options):
    """Several launches on the same inputs give the same bits, in values and gradients."""
    run, bars = compiled(implementation, **options), cotangents(arrays)
    first, *others = (jax.tree.map(np.asarray, run(arrays, order, bars)) for _ in range(launches))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)
