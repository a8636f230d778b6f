"""Batches on their way to devices."""

import itertools
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.devices.sharding import (
    MeshConfig,
    check_batch,
    make_mesh,
    on_devices,
    process_order,
    row_share,
)


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
        assert k + 2 in asked or len(asked) < k + 3  # it may be on its way just now
        assert len(asked) <= k + 4
        assert isinstance(batch, jax.Array) and len(batch.sharding.device_set) == mesh.size
        np.testing.assert_array_equal(batch, k)


def test_a_stream_that_ends_is_given_whole():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    finite = ({"labels": np.full((8, 1, 1), k, np.uint8)} for k in range(4))
    assert [int(b["labels"][0, 0, 0]) for b in on_devices(finite, mesh)] == [0, 1, 2, 3]


def test_what_a_stream_raises_arrives_and_a_closed_stream_is_asked_no_more():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    asked = []

    def batches():
        for k in itertools.count():
            asked.append(k)
            if k == 2:
                raise OSError("no such record")
            yield {"labels": np.zeros((8, 1, 1), np.uint8)}

    placed = on_devices(batches(), mesh)
    assert len(list(itertools.islice(placed, 2))) == 2
    with pytest.raises(OSError, match="no such record"):
        next(placed)
    asked.clear()
    closed = on_devices(itertools.repeat({"labels": np.zeros((8, 1, 1), np.uint8)}), mesh)
    next(closed)
    threads = threading.active_count()
    closed.close()
    assert threading.active_count() < threads


@pytest.mark.parametrize(
    ("processes", "order"),
    [([0, 0, 1, 1], [0, 1]), ([1, 1, 0, 0], [1, 0]), ([0, 1, 0, 1], [0, 1, 0, 1])],
)
def test_processes_are_told_in_the_order_of_their_devices(processes, order):
    assert process_order(SimpleNamespace(process_index=x) for x in processes) == order


def test_one_process_has_all_rows():
    assert row_share(make_mesh(MeshConfig(data=2, fsdp=2))) == (0, 1)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    for config in (MeshConfig(data=8, fsdp=1), MeshConfig(data=-1, fsdp=3)):
        with pytest.raises(InputError, match=r"does not cover the 4 devices"):
            make_mesh(config)


def test_batches_are_divided_by_devices_and_parts():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    check_batch(8, 2, mesh)
    with pytest.raises(InputError, match=r"batch_size 10 .* the 4 devices .*: .* multiple of 8$"):
        check_batch(10, 2, mesh)
    for parts, fewer in ((5, 3), (8, 6)):
        remedy = f"4 devices in {parts} parts .*: .* of {4 * parts}, or train.accumulate={fewer}$"
        with pytest.raises(InputError, match=rf"batch_size 24 is not divisible by the {remedy}"):
            check_batch(24, parts, mesh)
        check_batch(24, fewer, mesh)
