"""The eight zig-zag orders."""

import numpy as np
import pytest

from sisma_jax.models.sisma.scan_orders import NUM_ORDERS, block_orders, zigzag

EVERY_ORDER = [
    (grid, index)
    for grid in [(4, 4), (3, 5), (5, 2), (1, 6), (6, 1)]
    for index in range(NUM_ORDERS)
]


@pytest.mark.parametrize(
    ("index", "start"),
    [
        (0, [0, 1, 2, 3, 7, 6, 5, 4, 8]),
        (2, [3, 2, 1, 0, 4, 5, 6, 7, 11]),
        (4, [0, 4, 8, 12, 13, 9, 5, 1, 2]),
        (6, [12, 8, 4, 0, 1, 5, 9, 13, 14]),
    ],
)
def test_orders_of_the_four_by_four_grid(index, start):
    assert zigzag(4, 4, index)[: len(start)].tolist() == start
    np.testing.assert_array_equal(zigzag(4, 4, index + 1), zigzag(4, 4, index)[::-1])


def test_every_order_is_a_permutation_with_an_inverse():
    for grid, index in EVERY_ORDER:
        order = zigzag(*grid, index)
        identity = np.arange(np.prod(grid))
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), identity, f"{grid}, order {index}")
        np.testing.assert_array_equal(order[np.argsort(order)], identity, f"{grid}, order {index}")


def test_consecutive_tokens_are_neighbours_on_the_grid():
    for grid, index in EVERY_ORDER:
        rows, columns = np.divmod(zigzag(*grid, index), grid[1])
        distance = np.abs(np.diff(rows)) + np.abs(np.diff(columns))
        np.testing.assert_array_equal(distance, 1, f"{grid}, order {index}")


def test_all_eight_differ_on_a_square_grid():
    assert len({tuple(zigzag(4, 4, index)) for index in range(NUM_ORDERS)}) == NUM_ORDERS


def test_orders_outside_the_eight_are_refused():
    for index in (-1, 8):
        with pytest.raises(ValueError, match=f"order {index} does not exist"):
            zigzag(4, 4, index)
    with pytest.raises(ValueError, match="0x4"):
        zigzag(0, 4, 0)


def test_blocks_take_the_orders_in_turn():
    single = block_orders(4, 4, depth=10, orders_per_layer=1)
    for block in range(10):
        np.testing.assert_array_equal(single[block, 0], zigzag(4, 4, block % 8))
    double = block_orders(4, 4, depth=5, orders_per_layer=2)
    for block in range(5):
        np.testing.assert_array_equal(double[block, 1], double[block, 0][::-1])
    four = block_orders(4, 4, depth=2, orders_per_layer=4)
    assert len({tuple(order) for order in four.reshape(8, 16)}) == 8
