"""Where arrays live: a (data, fsdp) mesh, batches over both axes, parameters over fsdp."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sisma_jax.errors import InputError

SMALLEST_SHARDED = 2**16
"""Parameters with fewer elements are copied to every device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The config's section `mesh`; -1 takes the devices that the other axis leaves."""

    data: int
    fsdp: int


def make_mesh(config: MeshConfig) -> Mesh:
    """Return the mesh over all devices of all hosts.

    Raises:
      InputError: if the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    shape = [config.data, config.fsdp]
    if shape.count(-1) == 1:
        known = shape[1 - shape.index(-1)]
        if known > 0:
            shape[shape.index(-1)] = devices // known
    if min(shape) < 1 or shape[0] * shape[1] != devices:
        raise InputError(
            f"mesh.data {config.data} x mesh.fsdp {config.fsdp} does not cover the {devices} "
            "devices: their product has to be that number, and one of them may be -1"
        )
    return jax.make_mesh(tuple(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
    """Return a mesh over this process's devices, for work that no other process shares."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def whole_batch(size: int, mesh: Mesh) -> int:
    """The least number of rows, `size` at least, that the devices share evenly."""
    return -(-size // mesh.size) * mesh.size


def fill_up(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until there are `size`: batches of one shape compile once."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are spread over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def under_mesh(mesh: Mesh, function: Callable) -> Callable:
    """`function`, called with `mesh` in force, by which the selective scan spreads its batch."""

    def call(*arguments: Any, **options: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments, **options)

    return call


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError if the devices do not divide the batch."""
    if batch_size % mesh.size:
        raise InputError(
            f"train.batch_size {batch_size} is not divisible by the {mesh.size} devices: "
            "choose a multiple"
        )


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Return a sharding per leaf: large ones are cut along the longest axis that fsdp divides."""
    fsdp = mesh.shape["fsdp"]

    def leaf(x: jax.ShapeDtypeStruct) -> NamedSharding:
        cut = [axis for axis in range(x.ndim) if x.shape[axis] % fsdp == 0]
        if fsdp == 1 or x.size < SMALLEST_SHARDED or not cut:
            return replicated(mesh)
        spec = [None] * x.ndim
        spec[max(cut, key=lambda axis: x.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf, abstract)


def on_devices(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """The batches on the devices of `mesh`, `ahead` of them on their way while one is used."""
    placed: deque[dict[str, jax.Array]] = deque()
    for batch in batches:
        placed.append(put_batch(batch, mesh))
        if len(placed) > ahead:
            yield placed.popleft()
    yield from placed


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place this process's rows of a global batch on its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
