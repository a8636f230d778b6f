"""Wrong arguments are answered before any tracing, by one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.kernels import selective_scan

B, L, D, N = 2, 8, 4, 3
SHAPES = {
    "u": (B, L, D),
    "delta": (B, L, D),
    "A": (D, N),
    "B": (B, L, N),
    "C": (B, L, N),
    "D": (D,),
    "z": (B, L, D),
    "delta_bias": (D,),
    "h0": (B, D, N),
}


def arguments(**changes):
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()} | changes


def sentence(error):
    """The message, having checked that it is one sentence."""
    message = str(error.value)
    assert message.startswith("selective_scan: ")
    assert not message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "shape", "pattern", "expected"),
    [
        ("delta", (B, L - 1, D), "(batch, length, channels)", (B, L, D)),
        ("A", (D + 1, N), "(channels, state)", (D, N)),
        ("B", (B, N, L), "(batch, length, state)", (B, L, N)),
        ("C", (B, L, N + 1), "(batch, length, state)", (B, L, N)),
        ("D", (1,), "(channels,)", (D,)),
        ("z", (B, L), "(batch, length, channels)", (B, L, D)),
        ("delta_bias", (D, 1), "(channels,)", (D,)),
        ("h0", (B, N, D), "(batch, channels, state)", (B, D, N)),
    ],
)
def test_shapes_which_disagree(name, shape, pattern, expected):
    with pytest.raises(ValueError) as error:
        selective_scan(**arguments(**{name: jnp.ones(shape)}))
    message = sentence(error)
    for part in (f"{name} has shape {shape}", pattern, str(expected)):
        assert part in message


@pytest.mark.parametrize("name", ["u", "A"])
@pytest.mark.parametrize("shape", [(4,), (2, 8, 4, 3)])
def test_ranks_which_set_the_sizes(name, shape):
    with pytest.raises(ValueError) as error:
        selective_scan(**arguments(**{name: jnp.ones(shape)}))
    assert f"{name} has shape {shape}" in sentence(error)


def test_an_empty_sequence():
    with pytest.raises(ValueError) as error:
        selective_scan(**arguments(u=jnp.ones((B, 0, D))))
    assert "at least 1" in sentence(error)


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_which_are_not_real_floating(name, dtype):
    with pytest.raises(TypeError) as error:
        selective_scan(**arguments(**{name: jnp.ones(SHAPES[name], dtype)}))
    message = sentence(error)
    assert name in message
    assert jnp.dtype(dtype).name in message


@pytest.mark.parametrize("value", [None, [1.0]])
def test_something_else_than_an_array(value):
    with pytest.raises(TypeError) as error:
        selective_scan(**arguments(B=value))
    assert "B must be a floating-point array" in sentence(error)


@pytest.mark.parametrize(
    ("order", "error_type", "part"),
    [
        (np.arange(L), TypeError, "int64"),
        (np.arange(L, dtype=np.float32), TypeError, "float32"),
        (list(range(L)), TypeError, "a list; make it one"),
        (np.arange(L - 1, dtype=np.int32), ValueError, f"({L - 1},)"),
        (np.zeros((L, 1), np.int32), ValueError, f"({L}, 1)"),
        (np.array([0, 1, 2, 3, 4, 5, 6, 6], np.int32), ValueError, "row 7"),
        (np.arange(1, L + 1, dtype=np.int32), ValueError, "row 0"),
    ],
)
def test_orders_which_are_not_permutations(order, error_type, part):
    with pytest.raises(error_type) as error:
        selective_scan(**arguments(), order=order)
    message = sentence(error)
    assert "order" in message
    assert part in message


def test_a_known_order_is_checked_under_jit_and_a_traced_one_is_trusted():
    wrong = np.zeros(L, np.int32)
    with pytest.raises(ValueError, match="permutation"):
        jax.jit(lambda a: selective_scan(**a, order=wrong)).lower(arguments())
    jax.jit(lambda a, order: selective_scan(**a, order=order)).lower(arguments(), wrong)


@pytest.mark.parametrize(
    ("changes", "resets", "error_type", "part"),
    [
        (
            {},
            np.zeros((B, L), np.int32),
            TypeError,
            "it is int32; make it one with jnp.asarray",
        ),
        ({}, [False] * L, TypeError, "it is a list; make it"),
        ({}, np.zeros((L,), bool), ValueError, f"resets has shape ({L},), but (batch, length)"),
        ({}, np.zeros((B, L), bool), ValueError, "A has a positive entry, 1.0"),
        ({"A": -jnp.ones((D, N))}, np.zeros((B, L), bool), None, ""),
    ],
)
def test_resets_which_do_not_fit(changes, resets, error_type, part):
    scan = lambda: selective_scan(**arguments(**changes), resets=resets)
    if error_type is None:
        assert jnp.isfinite(scan()).all()
        return
    with pytest.raises(error_type) as error:
        scan()
    assert part in sentence(error)


def test_resets_work_where_a_trace_knows_A():
    arrays = arguments(A=-np.ones((D, N), np.float32))
    resets = np.ones((B, L), bool)
    expected = selective_scan(**arrays, resets=resets)
    found = jax.jit(lambda u: selective_scan(**arrays | {"u": u}, resets=resets))(arrays["u"])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_resets_keep_the_input_of_tiny_steps():
    u, A = jnp.full((1, 3, 1), 1e-12), -jnp.ones((1, 1))
    y = selective_scan(u, u, A, u, 1 / u, resets=np.ones((1, 3), bool))
    np.testing.assert_allclose(y, jnp.full((1, 3, 1), 1e-24), rtol=1e-5)


@pytest.mark.parametrize("name", ["reverse", "delta_softplus"])
def test_a_switch_is_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name} is 'yes', but it must be True or False"):
        selective_scan(**arguments(), **{name: "yes"})
    with pytest.raises(TypeError, match=f"{name} is traced.*static_argnames"):
        jax.jit(lambda switch: selective_scan(**arguments(), **{name: switch}))(True)


def test_resets_of_a_growing_state_are_not_a_number_where_nobody_could_look():
    A = jnp.full((D, N), -1.0).at[1, 2].set(0.5)
    scan = lambda A: selective_scan(**arguments(A=A), resets=np.zeros((B, L), bool))
    grows = jnp.isnan(jax.jit(scan)(A)).any((0, 1))
    assert grows.tolist() == [False, True, False, False]


def test_an_unknown_implementation_lists_the_known_ones():
    with pytest.raises(ValueError) as error:
        selective_scan(**arguments(), implementation="chunky")
    message = sentence(error)
    for name in ("chunky", "sequential", "associative", "chunked", "pallas_triton"):
        assert f"'{name}'" in message
