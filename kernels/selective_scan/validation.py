"""Validation of the arguments of `selective_scan`, with one sentence per error."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

_DIMENSIONS = {
    "u": ("batch", "length", "channels"),
    "delta": ("batch", "length", "channels"),
    "A": ("channels", "state"),
    "B": ("batch", "length", "state"),
    "C": ("batch", "length", "state"),
    "D": ("channels",),
    "z": ("batch", "length", "channels"),
    "delta_bias": ("channels",),
    "h0": ("batch", "channels", "state"),
}
_REQUIRED = ("u", "delta", "A", "B", "C")


def check_implementation(name: str, known: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `known`."""
    if name not in known:
        raise ValueError(
            f"selective_scan: there is no implementation {name!r}; "
            f"choose one of {', '.join(map(repr, known))}, or None for the best one here"
        )


def check_arguments(arrays: Mapping, order) -> None:
    """Raise TypeError or ValueError unless dtypes, shapes and order are consistent."""
    for name, array in arrays.items():
        if array is not None or name in _REQUIRED:
            _check_floating(name, array)
    _check_shapes(arrays)
    if order is not None:
        _check_order(order, arrays["u"].shape[1])


def check_resets(resets, arrays: Mapping) -> None:
    """Raise TypeError or ValueError unless resets are boolean, one for every row."""
    if getattr(resets, "dtype", None) != np.bool_:
        raise TypeError(
            f"selective_scan: resets must be a bool array, but it is {_kind(resets)}; make it one "
            "with jnp.asarray(resets, bool)"
        )
    expected = arrays["u"].shape[:2]
    if resets.shape != expected:
        raise ValueError(
            f"selective_scan: resets has shape {resets.shape}, but (batch, length) = {expected} "
            f"was expected, from u {arrays['u'].shape}"
        )
    if isinstance(arrays["A"], jax.core.Tracer):
        return
    # By NumPy: under a trace, operations of JAX are traced even if their arguments are known.
    largest = float(np.max(np.asarray(arrays["A"], np.float32)))
    if largest > 0:
        raise ValueError(
            f"selective_scan: A has a positive entry, {largest}, which resets do not support; make "
            "A negative, or scan the packed sequences one by one"
        )


def check_switches(**switches) -> None:
    """Raise TypeError unless all are Python's or NumPy's bool: the program depends on them."""
    for name, value in switches.items():
        if not isinstance(value, (bool, np.bool_)):
            kind = "traced" if isinstance(value, jax.core.Tracer) else f"{value!r}"
            raise TypeError(
                f"selective_scan: {name} is {kind}, but it must be True or False; under jax.jit "
                f"list it among static_argnames"
            )


def _kind(value) -> str:
    """The dtype of an array, or else the type."""
    return str(getattr(value, "dtype", f"a {type(value).__name__}"))


def _check_floating(name: str, array) -> None:
    if not hasattr(array, "dtype"):
        raise TypeError(
            f"selective_scan: {name} must be a floating-point array of shape {_pattern(name)}, "
            f"but it is a {type(array).__name__}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"selective_scan: {name} has dtype {array.dtype}, but the scan is defined for real "
            "floating-point arrays only; cast it first"
        )


def _check_shapes(arrays: Mapping) -> None:
    for name in ("u", "A"):
        shape = arrays[name].shape
        if len(shape) != len(_DIMENSIONS[name]) or 0 in shape:
            raise ValueError(
                f"selective_scan: {name} has shape {shape}, but {_pattern(name)} with every size "
                "at least 1 was expected"
            )
    sizes = dict(zip(_DIMENSIONS["u"], arrays["u"].shape, strict=True))
    sizes["state"] = arrays["A"].shape[1]
    for name, array in arrays.items():
        if array is None:
            continue
        expected = tuple(sizes[letter] for letter in _DIMENSIONS[name])
        if array.shape != expected:
            raise ValueError(
                f"selective_scan: {name} has shape {array.shape}, but {_pattern(name)} = "
                f"{expected} was expected, from u {arrays['u'].shape} and A {arrays['A'].shape}"
            )


def _check_order(order, length: int) -> None:
    if getattr(order, "dtype", None) != np.int32:
        raise TypeError(
            f"selective_scan: order must be an int32 array, but it is {_kind(order)}; make it one "
            "with jnp.asarray(order, jnp.int32)"
        )
    if order.shape != (length,):
        raise ValueError(
            f"selective_scan: order has shape {order.shape}, but (length,) = ({length},) was "
            "expected, one row per step"
        )
    if isinstance(order, jax.core.Tracer):
        return
    visits = np.asarray(order)
    missing = np.setdiff1d(np.arange(length), visits)
    if missing.size:
        raise ValueError(
            f"selective_scan: order is not a permutation of range({length}): row {missing[0]} is "
            f"never visited (entries run from {visits.min()} to {visits.max()}, "
            f"{np.unique(visits).size} of them distinct)"
        )


def _pattern(name: str) -> str:
    letters = _DIMENSIONS[name]
    return f"({', '.join(letters)}{',' if len(letters) == 1 else ''})"
