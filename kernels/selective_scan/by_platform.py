"""A function that differs between platforms; the choice is made at lowering.

A program is lowered for the platform of its arrays, whatever JAX's default backend is.
`jax.lax.platform_dependent` also chooses there, but traces and transforms every branch on every
platform, and a kernel takes seconds to trace and supports fewer transformations than its
substitutes. So only the default is traced here. The function of another platform is traced, and
transformed as the default was, when a program is lowered for that platform.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_choice = Primitive("by_platform")
_choice.multiple_results = True


def by_platform(default: Callable, **others: Callable) -> Callable:
    """Return a function that runs `others[platform]` where given, and `default` elsewhere.

    Arguments and results are trees of arrays. The keys of `others` are among PLATFORMS, and all
    functions return the shapes and dtypes of the default. Arguments that the default returns
    unchanged are returned without a copy on every platform.
    """

    def function(*arguments: Any) -> Any:
        flat, tree = jax.tree.flatten(arguments)
        traced, shapes = jax.make_jaxpr(default, return_shape=True)(*arguments)
        given = {id(variable): place for place, variable in enumerate(traced.jaxpr.invars)}
        untouched = [given.get(id(variable)) for variable in traced.jaxpr.outvars]

        def touched(results: list) -> list:
            return [x for x, place in zip(results, untouched, strict=True) if place is None]

        def of_leaves(other: Callable, *flat: jax.Array) -> list:
            return touched(jax.tree.leaves(other(*jax.tree.unflatten(tree, flat))))

        results = iter(
            _choice.bind(
                *flat,
                default=jax.make_jaxpr(lambda *flat: touched(jaxpr_as_fun(traced)(*flat)))(*flat),
                others=tuple((name, partial(of_leaves, other)) for name, other in others.items()),
            )
        )
        leaves = [next(results) if place is None else flat[place] for place in untouched]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return function


def _transformed(
    transform: Callable, arguments: Sequence, default: ClosedJaxpr, others: tuple
) -> dict:
    """Parameters of the primitive after `transform` is applied to every function."""
    return {
        "default": jax.make_jaxpr(transform(jaxpr_as_fun(default)))(*arguments),
        "others": tuple((name, transform(other)) for name, other in others),
    }


@_choice.def_abstract_eval
def _result_types(*arguments, default, others):
    return default.out_avals


@_choice.def_impl
def _run(*arguments, **functions):
    with jax.disable_jit(False):
        return jax.jit(partial(_choice.bind, **functions))(*arguments)


def _lower(platform: str | None, context, *arguments, default, others):
    function = dict(others).get(platform, jaxpr_as_fun(default))
    return mlir.lower_fun(function, multiple_results=True)(context, *arguments)


mlir.register_lowering(_choice, partial(_lower, None))
for _platform in PLATFORMS:
    mlir.register_lowering(_choice, partial(_lower, _platform), platform=_platform)


def _batch(arguments, axes, *, default, others):
    transform = lambda function: jax.vmap(function, in_axes=tuple(axes))
    results = _choice.bind(*arguments, **_transformed(transform, arguments, default, others))
    return results, [0] * len(results)


batching.primitive_batchers[_choice] = _batch


def _differentiate(arguments, tangents, *, default, others):
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]
    smooth = [jnp.issubdtype(result.dtype, jnp.inexact) for result in default.out_avals]
    directions = [tangent for tangent, moves in zip(tangents, moving, strict=True) if moves]

    def transform(function: Callable) -> Callable:
        def along(*both: jax.Array) -> list:
            arguments, directions = both[: len(moving)], both[len(moving) :]

            def of_moving(*some: jax.Array) -> list:
                some = iter(some)
                every = zip(arguments, moving, strict=True)
                results = function(*(next(some) if moves else x for x, moves in every))
                return [y for y, is_smooth in zip(results, smooth, strict=True) if is_smooth]

            start = [x for x, moves in zip(arguments, moving, strict=True) if moves]
            return jax.jvp(of_moving, tuple(start), tuple(directions))[1]

        return along

    results = _choice.bind(*arguments, default=default, others=others)
    inputs = [*arguments, *directions]
    slopes = iter(_choice.bind(*inputs, **_transformed(transform, inputs, default, others)))
    return results, [
        next(slopes) if is_smooth else ad.Zero(jax.typeof(result).to_tangent_aval())
        for result, is_smooth in zip(results, smooth, strict=True)
    ]


ad.primitive_jvps[_choice] = _differentiate


def _transpose(*arguments, **functions):
    raise NotImplementedError(
        "selective_scan: the default has no second derivatives in reverse mode; take the outer "
        "derivative in forward mode, or use implementation='sequential' or 'associative'"
    )


ad.primitive_transposes[_choice] = _transpose
