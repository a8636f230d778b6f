"""XLA's count of a model's arithmetic, for comparison with the hand counts.

XLA counts the operations of a program before optimising it: two per multiply-accumulate (MAC) of a
matrix product, and also norms, activations, gates and conversions, which the hand counts leave out.
It leaves out the parts of windows that reach into zero padding, which the hand counts contain.
Nothing is compiled or run here.

XLA counts the body of a loop once, however often it runs. So the bodies of loops (SISMA's blocks,
the steps of the scan, the blocks of queries of attention) are also counted separately, and added as
often as they are missing. SISMA's scan is always "sequential", the plain recurrence, because other
implementations do more or hide their work from XLA.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxpr_as_fun, jaxprs_in_params

from sisma_jax.models.generators import Config, Macs, generator, parameter_shapes
from sisma_jax.models.sisma.config import SISMAConfig


@cache  # tracing takes seconds
def xla_macs(config: Config) -> Macs:
    """Return half of XLA's operations for one image, in the parts of `Generator.macs`."""
    if isinstance(config, SISMAConfig):
        config = dataclasses.replace(config, scan="sequential")
    model, params = generator(config), parameter_shapes(config)
    size, latent = config.image_size, config.latent_size
    labels = jax.ShapeDtypeStruct((1, size, size), jnp.uint8)
    images = floats(1, size, size, 3)
    z, t = floats(1, latent, latent, config.latent_channels), floats(1)
    style = jax.eval_shape(model.no_style, params) if model.has_style else None
    rounded = jax.eval_shape(model.in_compute_type, params)
    encoded = jax.eval_shape(model.encode, rounded, labels, style)
    return Macs(
        velocity=counted_macs(model.velocity, rounded, z, t, encoded),
        mask=counted_macs(model.encode, rounded, labels, style),
        style=counted_macs(model.encode_style, params, images, labels) if model.has_style else 0,
    )


def counted_macs(function: Callable, *arguments: Any) -> int:
    """Return half of XLA's operations for a function, with its loops as often as they run.

    Args:
      function: any that JAX can trace.
      arguments: its arguments, or their shapes and dtypes.
    """
    program = jax.make_jaxpr(function)(*arguments)
    return round((_operations(program) + _missing(program.jaxpr)) / 2)


def _missing(program: Jaxpr) -> float:
    """Operations of loops that XLA does not count."""
    total = 0.0
    for equation in program.eqns:
        inner = sum(map(_missing, jaxprs_in_params(equation.params)))
        if equation.primitive.name == "scan":
            runs = equation.params["length"]
            inner = runs * inner + (runs - 1) * _operations(equation.params["jaxpr"])
        total += inner
    return total


def _operations(program: Any) -> float:
    """XLA's count of operations of a closed jaxpr, with the body of every loop once."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    return jax.jit(jaxpr_as_fun(program)).lower(*shapes).cost_analysis().get("flops", 0.0)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
