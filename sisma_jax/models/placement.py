"""Where a model's arrays lie while a mesh is in force (`jax.set_mesh`); without one nothing acts.

Parameters may be stored in pieces, cut along one of their axes (FSDP). Left to itself, XLA may then
cut the activations along their features too, and gather those, which are far larger. So a sharded
parameter is gathered just before its use, and rows of a batch stay where they are.
"""

from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

Tree = TypeVar("Tree", bound=Any)


def whole(tree: Tree) -> Tree:
    """The arrays of `tree`, all of each on every device."""
    return _placed(tree, lambda axes: PartitionSpec())


def by_rows(tree: Tree, axis: int = 0) -> Tree:
    """The arrays of `tree`, their axis `axis` (the batch) spread over all devices."""
    return _placed(tree, lambda axes: PartitionSpec(*(None,) * axis, axes))


def _placed(tree: Tree, spec: Any) -> Tree:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return tree
    constraint = spec(mesh.axis_names)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, constraint), tree)
