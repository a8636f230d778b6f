"""What `jax.vmap` makes of a kernel launch, known to the function that launches it.

A launch plan depends on the number of sequences that are scanned at once, and the mapped axes of
`jax.vmap`, such as several scan orders, multiply it. The dtype of a gradient depends on whether
its argument is mapped; see `wide`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
from jax.custom_batching import custom_vmap

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Instances:
    """The mapped axes around a launch."""

    count: int = 1
    """The product of their sizes."""
    shared: frozenset[str] = frozenset()
    """Names of the inputs that at least one of them does not map."""


def with_instances(
    function: Callable[[Instances, Arrays], Arrays], instances: Instances = Instances()
) -> Callable[[Arrays], Arrays]:
    """`function(instances, inputs)` as a function of `inputs` that `jax.vmap` tells of its axis.

    The shapes and dtypes of its results do not depend on `instances`.
    """
    told = custom_vmap(partial(function, instances))

    @told.def_vmap
    def rule(size: int, is_mapped: list[dict[str, bool]], inputs: Arrays):
        (is_mapped,) = is_mapped
        shared = frozenset(name for name, mapped in is_mapped.items() if not mapped)
        more = Instances(instances.count * size, instances.shared | shared)

        def batched(instances: Instances, inputs: Arrays) -> Arrays:
            axes = {name: None if name in shared else 0 for name in inputs}
            mapped = jax.vmap(partial(function, instances), in_axes=(axes,), axis_size=size)
            return mapped(inputs)

        outputs = with_instances(batched, more)(inputs)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return told
