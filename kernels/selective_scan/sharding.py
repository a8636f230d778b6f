"""Over several devices: a kernel is no operation that XLA can split, so the scan maps itself.

Where a mesh is set (`jax.set_mesh`), every device scans its own sequences. Without this, XLA would
gather the whole batch on each of them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def batch_axes(batch: int) -> tuple[str, ...]:
    """The axes of the mesh in force over which `batch` sequences can be spread evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    axes, size = [], 1
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if kind == AxisType.Auto and batch % (size * mesh.shape[name]) == 0:
            axes.append(name)
            size *= mesh.shape[name]
    return tuple(axes) if size > 1 else ()


def share(batch: int) -> int:
    """Sequences of one device, where the mesh in force spreads `batch`."""
    mesh = jax.sharding.get_abstract_mesh()
    return batch // math.prod(mesh.shape[name] for name in batch_axes(batch))


def _whole(function: Callable) -> Callable:
    """`function`, but for arrays that are split over an axis of a mesh which is explicit."""

    def checked(inputs: dict[str, jax.Array]) -> Any:
        for name, x in inputs.items():
            spec = jax.typeof(x).sharding.spec
            if any(axis is not None for axis in spec):
                raise NotImplementedError(
                    f"selective_scan: {name} is sharded as {spec} over explicit axes of a mesh, "
                    "which kernels do not split: make the mesh with axis_types=(AxisType.Auto, ...)"
                )
        return function(inputs)

    return checked


def over_batch(function: Callable, batch: int, is_batched: Callable[[str], bool]) -> Callable:
    """`function(inputs)` for each device's sequences, where a mesh is set; else as it is.

    `inputs` is a dict of arrays, of which those that `is_batched` names have the batch in front,
    as all results have; the others are whole everywhere.
    """
    axes = batch_axes(batch)
    if not axes:
        return _whole(function)

    def mapped(inputs: dict[str, jax.Array]) -> Any:
        specs = {name: P(axes) if is_batched(name) else P() for name in inputs}
        return jax.shard_map(function, in_specs=(specs,), out_specs=P(axes), check_vma=False)(
            inputs
        )

    return mapped
