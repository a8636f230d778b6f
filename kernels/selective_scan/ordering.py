"""Scan orders: step s of a scan visits row order[s], or order[length - 1 - s] when reversed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int, Shaped


def visited_rows(
    order: Int[Array, "length"] | None, length: int, reverse: bool
) -> Int[Array, "length"] | None:
    """The row that each step visits; None if step s visits row s."""
    if reverse:
        order = jnp.arange(length, dtype=jnp.int32) if order is None else order
        return order[::-1]
    return order


def in_sequence(
    x: Shaped[Array, "batch length width"], rows: Int[Array, "length"] | None
) -> Shaped[Array, "batch length width"]:
    """x permuted so that position s holds the row of step s."""
    return x if rows is None else _permute(x, rows, jnp.argsort(rows))


def in_rows(
    y: Shaped[Array, "batch length width"], rows: Int[Array, "length"] | None
) -> Shaped[Array, "batch length width"]:
    """The inverse of `in_sequence`."""
    return y if rows is None else _permute(y, jnp.argsort(rows), rows)


@jax.custom_vjp
def _permute(x, rows, inverse):
    """x[:, rows]. Its gradient is the inverse permutation: also a gather, not a scatter."""
    return jnp.take(x, rows, axis=1, mode="clip")


def _permute_forward(x, rows, inverse):
    return _permute(x, rows, inverse), (rows, inverse)


def _permute_backward(residuals, ybar):
    rows, inverse = residuals
    return _permute(ybar, inverse, rows), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def one_order_at_a_time(function: Callable) -> Callable:
    """`function(order, arrays)` with a batching rule that loops over orders.

    A function that accesses row order[s] in place would need gathers and scatters when batched over
    orders. So `jax.vmap` runs several orders one after another; other mapped axes are batched as
    usual.
    """
    looped = custom_vmap(function)

    @looped.def_vmap
    def rule(size, is_mapped, order, arrays):
        order_is_mapped, arrays_are_mapped = is_mapped
        if order_is_mapped:

            def at(index):
                take = lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False)
                pick = lambda mapped, x: take(x) if mapped else x
                return looped(take(order), jax.tree.map(pick, arrays_are_mapped, arrays))

            results = lax.map(at, jnp.arange(size))
        else:
            axes = jax.tree.map(lambda mapped: 0 if mapped else None, arrays_are_mapped)
            batched = jax.vmap(function, in_axes=(None, axes), axis_size=size)
            results = one_order_at_a_time(batched)(order, arrays)
        return results, jax.tree.map(lambda _: True, results)

    return looped
