"""Sharding constraints under a mesh (`jax.set_mesh`); without one these functions do nothing.

Parameters may be sharded along one of their axes (FSDP). Without constraints XLA may shard the
activations along their features too and gather those, which are far larger. So a sharded parameter
is gathered just before its use, and the rows of a batch stay on their devices.
"""

from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

Tree = TypeVar("Tree", bound=Any)


def replicate(tree: Tree) -> Tree:
    """The arrays of `tree`, replicated on every device."""
    return _placed(tree, lambda axes: PartitionSpec())


def by_rows(tree: Tree, axis: int = 0) -> Tree:
    """The arrays of `tree`, sharded along `axis` (the batch) over all devices."""
    return _placed(tree, lambda axes: PartitionSpec(*(None,) * axis, axes))


def _placed(tree: Tree, spec: Any) -> Tree:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return tree
    constraint = spec(mesh.axis_names)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, constraint), tree)
