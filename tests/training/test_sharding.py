"""Batches on their way to devices."""

import itertools

import jax
import numpy as np

from sisma_jax.training.sharding import MeshConfig, make_mesh, on_devices


def test_batches_are_placed_ahead_in_order():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    asked = []

    def batches():
        for k in itertools.count():
            asked.append(k)
            yield {"labels": np.full((8, 2, 2), k, np.uint8)}

    placed = on_devices(batches(), mesh, ahead=2)
    for k in range(3):
        batch = next(placed)["labels"]
        assert asked == list(range(k + 3))
        assert isinstance(batch, jax.Array) and len(batch.sharding.device_set) == mesh.size
        np.testing.assert_array_equal(batch, k)


def test_a_stream_that_ends_is_given_whole():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    finite = ({"labels": np.full((8, 1, 1), k, np.uint8)} for k in range(4))
    assert [int(b["labels"][0, 0, 0]) for b in on_devices(finite, mesh)] == [0, 1, 2, 3]
