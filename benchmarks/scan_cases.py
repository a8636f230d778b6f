"""Cases of the scan benchmark: sizes, inputs, the comparison with float64, and the clock."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import oracle

DTYPES = ("bfloat16", "float32")
ITEM_SIZE = {"bfloat16": 2, "float32": 4}
TOLERANCE = {
    "bfloat16": {"y": 1e-2, "gradients": 1e-2},
    "float32": {"y": 1e-5, "gradients": 5e-5},
}
"""Limits of max |error| / max |reference|; at or above these a result is wrong."""
KINDS = ("forward", "backward", "both")
CACHES = 256 * 2**20
"""Total bytes of inputs of one measurement, at least, so that no cache holds them."""

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Size:
    batch: int
    length: int
    channels: int
    state: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        try:
            size = cls(*map(int, text.split(",")))
        except (TypeError, ValueError):
            raise ValueError(f"size {text!r}: give batch,length,channels,state") from None
        if min(dataclasses.astuple(size)) < 1:
            raise ValueError(f"size {text!r}: give whole numbers of at least 1")
        return size


def traffic(size: Size, dtype: str, full: bool) -> dict[str, int]:
    """Bytes that "forward" and "backward" pass move to and from memory at least."""
    array = size.batch * size.length * size.channels * ITEM_SIZE[dtype]
    # Forward: u, delta, y, with full also z. Backward: u, delta, ybar, ubar, deltabar, with full
    # also z and zbar.
    return {"forward": (3 + full) * array, "backward": (5 + 2 * full) * array}


@dataclasses.dataclass(frozen=True)
class Case:
    size: Size
    implementation: str
    dtype: str
    full: bool
    """With gate, bias and softplus."""
    orders: int


def inputs(case: Case, seed: int) -> Arrays:
    """Arguments of the scan; those that differ by order have a leading axis of several orders."""
    b, length, d, n = dataclasses.astuple(case.size)
    k = case.orders
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    delta = normal(k, b, length, d) - 3
    arrays = {
        "u": normal(b, length, d),
        "delta": delta if case.full else np.logaddexp(0, delta),
        "B": normal(k, b, length, n),
        "C": normal(k, b, length, n),
    }
    if case.full:
        arrays["z"] = normal(b, length, d)
    arrays = {name: jnp.asarray(x, case.dtype) for name, x in arrays.items()}
    arrays["A"] = jnp.tile(-jnp.arange(1.0, n + 1), (k, d, 1))
    arrays["D"] = jnp.asarray(normal(k, d))
    if case.full:
        arrays["delta_bias"] = jnp.asarray(0.1 * normal(k, d))
    arrays["order"] = jnp.asarray(
        np.stack([rng.permutation(length) for _ in range(k)]).astype(np.int32)
    )
    if k == 1:
        unmapped = {name: x if name in ("u", "z") else x[0] for name, x in arrays.items()}
        return {name: x for name, x in unmapped.items() if name != "order"}
    return arrays


def scan(case: Case, arrays: Arrays) -> jax.Array:
    """y (batch, length, channels), with several orders (orders, batch, length, channels)."""
    run = partial(selective_scan, delta_softplus=case.full, implementation=case.implementation)
    if case.orders == 1:
        return run(**arrays)
    axes = {name: None if name in ("u", "z") else 0 for name in arrays}
    return jax.vmap(lambda arrays: run(**arrays), in_axes=(axes,))(arrays)


def pull_back(case: Case, arrays: Arrays) -> tuple[jax.Array, Callable]:
    """y, and a function: cotangent of y -> 1-tuple of gradients of floating arguments by name."""
    order = {name: x for name, x in arrays.items() if name == "order"}
    floating = {name: x for name, x in arrays.items() if name != "order"}
    return jax.vjp(lambda x: scan(case, x | order), floating)


def gradients(case: Case, arrays: Arrays, ybar: jax.Array) -> tuple[jax.Array, Arrays]:
    """y, and the gradients of sum(ybar y)."""
    y, to_gradients = pull_back(case, arrays)
    return y, to_gradients(ybar)[0]


def cotangent(case: Case) -> jax.Array:
    size = case.size
    shape = (case.orders, size.batch, size.length, size.channels)
    ybar = np.random.default_rng(99).standard_normal(shape, np.float32)
    return jnp.asarray(ybar if case.orders > 1 else ybar[0], case.dtype)


def largest_errors(case: Case) -> dict[str, float]:
    """`compare` of y and all gradients."""
    y, bars = jax.jit(partial(gradients, case))(inputs(case, 0), cotangent(case))
    return compare(case, {"y": y, **bars})


def compare(case: Case, results: dict) -> dict[str, float]:
    """max |error| / max |reference| for `inputs(case, 0)`: of y, and the largest of the gradients.

    The reference is too slow for all data, so it is computed twice: for a few channels of all
    sequences, and for all channels of one sequence (gradients of B and C). Of several orders only
    the last is compared, without u's gradient, which is a sum over orders.
    """
    arrays, ybar = inputs(case, 0), cotangent(case)
    if case.orders > 1:
        last = lambda name, x: x if name in ("u", "z") else x[-1]
        arrays = {name: last(name, x) for name, x in arrays.items()}
        results = {n: last(n, x) for n, x in results.items() if n not in ("u", "z")}
        ybar = ybar[-1]
    order = np.asarray(arrays.pop("order")) if "order" in arrays else None
    axes = {
        "u": "bld", "delta": "bld", "z": "bld", "y": "bld",
        "A": "dn", "B": "bln", "C": "bln", "D": "d", "delta_bias": "d",
    }  # fmt: skip

    def part(name: str, x: jax.Array, sequences: slice, channels: slice) -> np.ndarray:
        cut = {"b": sequences, "d": channels}
        x = x[tuple(cut.get(axis, slice(None)) for axis in axes[name])]
        return np.asarray(x.astype(jnp.float32), np.float64)

    def errors(names, sequences: slice, channels: slice):
        cut = lambda tree: {n: part(n, x, sequences, channels) for n, x in tree.items()}
        given = {"z": None, "delta_bias": None, "h0": None} | cut(arrays)
        options = dict(delta_softplus=case.full, order=order)
        expected = {"y": oracle.forward(given, **options)[0]} | oracle.gradients(
            given, part("y", ybar, sequences, channels), 0.0, **options
        )
        actual = cut(results)
        for name in names & actual.keys():
            scale = np.abs(expected[name]).max()
            yield name, np.abs(actual[name] - expected[name]).max() / scale

    everything = slice(None)
    few = errors({"y", "u", "delta", "z", "A", "D", "delta_bias"}, everything, slice(0, 8))
    one = errors({"B", "C"}, slice(0, 1), everything)
    largest: dict[str, float] = {}
    for name, error in [*few, *one]:
        kind = "y" if name == "y" else "gradients"
        error = float(error) if np.isfinite(error) else float("inf")
        largest[kind] = max(largest.get(kind, 0.0), error)
    return largest


def times(case: Case, repeats: int) -> dict:
    """Median device and host microseconds of each kind, and temporary memory of "both".

    Device time is the time per call of several calls inside one program, on inputs that no cache
    holds; host time is that of one call from Python.
    """
    one = inputs(case, 0)
    size = sum(x.nbytes for x in one.values())
    count = max(2, min(16, -(-CACHES // size))) if jax.default_backend() == "gpu" else 1
    sets = [one, *(inputs(case, seed) for seed in range(1, count))]
    ybars = [cotangent(case)] * count

    several = lambda function: (
        lambda *lists: [function(*arguments) for arguments in zip(*lists, strict=True)]
    )
    both = jax.jit(several(partial(gradients, case)))
    pulled_back = jax.jit(several(partial(pull_back, case)))(sets)
    device = {
        "forward": clock(jax.jit(several(partial(scan, case))), (sets,), repeats),
        "backward": clock(
            jax.jit(several(lambda to_gradients, ybar: to_gradients(ybar))),
            ([to_gradients for _, to_gradients in pulled_back], ybars),
            repeats,
        ),
        "both": clock(both, (sets, ybars), repeats),
    }
    memory = both.lower([one], ybars[:1]).compile().memory_analysis()
    return {
        "device_us": {kind: microseconds / count for kind, microseconds in device.items()},
        "host_us": {
            "forward": clock(jax.jit(partial(scan, case)), (one,), repeats),
            "both": clock(jax.jit(partial(gradients, case)), (one, ybars[0]), repeats),
        },
        "temp_mib": memory.temp_size_in_bytes / 2**20,
    }


def clock(function: Callable, arguments: tuple, repeats: int) -> float:
    """Median microseconds of a call, after two warm-up calls."""
    measured = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        measured.append(1e6 * (time.perf_counter() - start))
    return statistics.median(measured[2:])
