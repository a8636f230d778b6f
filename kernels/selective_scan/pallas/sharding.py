"""The scan over several devices: XLA cannot split a kernel, so the scan is mapped explicitly.

If a mesh is set (`jax.set_mesh`), every device scans its own sequences. Without the mapping, XLA
would gather the whole batch on every device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def batch_axes(batch: int, without: str | None = None) -> tuple[str, ...]:
    """The axes of the current mesh, all but one, over which `batch` sequences spread evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    axes, size = [], 1
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if name == without:
            continue
        if kind == AxisType.Auto and batch % (size * mesh.shape[name]) == 0:
            axes.append(name)
            size *= mesh.shape[name]
    return tuple(axes) if size > 1 else ()


def share(batch: int) -> int:
    """Sequences per device when the current mesh spreads `batch`."""
    mesh = jax.sharding.get_abstract_mesh()
    return batch // math.prod(mesh.shape[name] for name in batch_axes(batch))


def _without_explicit_axes(function: Callable) -> Callable:
    """`function`, which refuses arrays that are split over explicit axes of a mesh."""

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
    """`function(inputs)` mapped over the devices of the current mesh, if one is set.

    `inputs` is a dict of arrays. Those for which `is_batched(name)` holds, and all results, have
    the batch as first axis; the others are replicated.
    """
    axes = batch_axes(batch)
    if not axes:
        return _without_explicit_axes(function)

    def mapped(inputs: dict[str, jax.Array]) -> Any:
        specs = {name: P(axes) if is_batched(name) else P() for name in inputs}
        return jax.shard_map(function, in_specs=(specs,), out_specs=P(axes), check_vma=False)(
            inputs
        )

    return mapped
