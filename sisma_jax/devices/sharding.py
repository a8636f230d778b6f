"""The (data, fsdp) mesh: batches are sharded over both axes, parameters over fsdp."""

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sisma_jax.common.errors import InputError

SMALLEST_SHARDED = 2**16
"""Smaller arrays, by number of elements, are replicated."""

FIRST_AXIS_CUT = (
    (r"\['blocks'\]", 1),  # the first axis is indexed by block
    (r"", 0),
)
"""The first axis of a state's array that may be sharded over "fsdp", by the first pattern found in
its path. Of these axes, the longest one that the devices divide is sharded. Arrays of the optimizer
and the average have the paths and shapes of the parameters, hence the same shardings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The config's section `mesh`; -1 takes the devices left by the other axis."""

    data: int
    fsdp: int


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over `devices`, by default those of all hosts.

    Raises:
      InputError: if the product of the axes is not the number of devices.
    """
    given = jax.devices() if devices is None else devices
    count = len(given)
    shape = [config.data, config.fsdp]
    if shape.count(-1) == 1:
        known = shape[1 - shape.index(-1)]
        if known > 0:
            shape[shape.index(-1)] = count // known
    if min(shape) < 1 or shape[0] * shape[1] != count:
        raise InputError(
            f"mesh.data {config.data} x mesh.fsdp {config.fsdp} does not cover the {count} "
            "devices: their product must be that number, and one of them may be -1"
        )
    mesh = jax.make_mesh(
        tuple(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=given
    )
    if len(process_order(mesh.devices.flat)) == len({device.process_index for device in given}):
        return mesh
    # A layout optimised for the network may separate the devices of one process. Its rows would be
    # separated too, and a batch would depend on the number of processes.
    return Mesh(np.reshape(given, shape), mesh.axis_names, axis_types=mesh.axis_types)


def process_order(devices: Iterable[Any]) -> list[int]:
    """Processes in the order of their devices, repeated if their devices are not contiguous."""
    return [process for process, _ in groupby(device.process_index for device in devices)]


def row_share(mesh: Mesh) -> tuple[int, int]:
    """The index of this process among those that share the rows of a batch, and their number."""
    order = process_order(mesh.devices.flat)
    return order.index(jax.process_index()), len(order)


def local_mesh() -> Mesh:
    """Return a mesh over this process's devices, for local work."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def whole_batch(size: int, mesh: Mesh) -> int:
    """`size` rounded up to a multiple of the number of devices."""
    return -(-size // mesh.size) * mesh.size


def fill_up(rows: np.ndarray, size: int) -> np.ndarray:
    """Pad to `size` rows by repeating the last one, so that all batches have one shape."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def chunks(size: int, mesh: Mesh, *arrays: np.ndarray) -> Iterator[tuple[list[jax.Array], int]]:
    """Batches of `size` rows of arrays of equal length, on the devices of `mesh`.

    Yields:
      The rows of each array, padded by `fill_up`, and their number without padding.
    """
    for start in range(0, len(arrays[0]), size):
        parts = [x[start : start + size] for x in arrays]
        placed = [jax.device_put(fill_up(part, size), batch_sharding(mesh)) for part in parts]
        yield placed, len(parts[0])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _same(tree: Any) -> Any:
    return tree


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """The arrays replicated on this process's devices; every process must call it."""
    tree = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    if jax.process_count() == 1:
        return tree
    # Every device holds all of a replicated array.
    return jax.device_put(
        jax.tree.map(lambda x: x.addressable_data(0), tree), replicated(local_mesh())
    )


def under_mesh(mesh: Mesh, function: Callable) -> Callable:
    """`function` called with `mesh` set, over which the selective scan shards its batch."""

    def call(*arguments: Any, **options: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments, **options)

    return call


def check_batch(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raise InputError unless the batch can be split into `parts` over the devices."""
    if batch_size % (mesh.size * parts):
        in_parts = f" in {parts} parts (train.accumulate)" if parts > 1 else ""
        remedy = f"choose a multiple of {mesh.size * parts}"
        rows, rest = divmod(batch_size, mesh.size)
        if parts > 1 and rest == 0:
            fewer = next(n for n in range(parts - 1, 0, -1) if rows % n == 0)
            remedy += f", or train.accumulate={fewer}"
        raise InputError(
            f"train.batch_size {batch_size} is not divisible by the {mesh.size} devices{in_parts}: "
            f"{remedy}"
        )


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Return the sharding of each leaf of a state's shapes, by FIRST_AXIS_CUT."""
    fsdp = mesh.shape["fsdp"]

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        first = next(first for pattern, first in FIRST_AXIS_CUT if re.search(pattern, name))
        cut = [axis for axis in range(first, x.ndim) if x.shape[axis] % fsdp == 0]
        if fsdp == 1 or x.size < SMALLEST_SHARDED or not cut:
            return replicated(mesh)
        spec = [None] * x.ndim
        spec[max(cut, key=lambda axis: x.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def on_devices(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """The batches on the devices of `mesh`, prefetched by `ahead` batches.

    A thread reads and places them. Close the returned iterator before `batches`.
    """
    place = lambda: None if (batch := next(batches, None)) is None else put_batch(batch, mesh)
    placer = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        coming = deque(placer.submit(place) for _ in range(ahead + 1))
        while (batch := coming.popleft().result()) is not None:
            coming.append(placer.submit(place))
            yield batch
    finally:
        placer.shutdown(cancel_futures=True)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place this process's rows of a global batch on its devices, as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
