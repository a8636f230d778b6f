"""The orders in which scans visit the tokens of a grid.

A selective scan is causal: a token depends only on its predecessors. With eight zig-zag orders,
a different one in each block, every token depends on the whole grid after a few blocks (ZigMa,
arXiv 2403.13802). Successive tokens are always neighbours on the grid.
"""

import numpy as np
from jaxtyping import Int32

NUM_ORDERS = 8


def zigzag(height: int, width: int, index: int) -> Int32[np.ndarray, " length"]:
    """Return zig-zag order `index` (0..7) of a grid, int32: step s visits token `order[s]`.

    Tokens are numbered row by row. On a 4x4 grid:

      0  rows from the top left               0 1 2 3 7 6 5 4 8 ...
      2  rows, the first from right to left   3 2 1 0 4 5 6 7 11 ...
      4  columns, the first downwards         0 4 8 12 13 9 5 1 ...
      6  columns, the first upwards           12 8 4 0 1 5 9 13 ...

    and each odd index is the reverse of the even one before it.

    Raises:
      ValueError: if `index` is not in 0..7 or the grid is empty.
    """
    if not 0 <= index < NUM_ORDERS:
        raise ValueError(f"zig-zag order {index} does not exist: choose one of 0..{NUM_ORDERS - 1}")
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height}x{width} tokens is empty: both sides must be positive")
    lines = np.arange(height * width, dtype=np.int32).reshape(height, width)
    family, start, backwards = index // 4, index // 2 % 2, index % 2
    if family == 1:
        lines = lines.T
    turned = np.arange(len(lines)) % 2 != start
    order = np.where(turned[:, None], lines[:, ::-1], lines).reshape(-1)
    return np.ascontiguousarray(order[::-1] if backwards else order)


def block_orders(
    height: int, width: int, depth: int, orders_per_layer: int
) -> Int32[np.ndarray, "depth orders length"]:
    """Return the int32 orders of a stack of blocks: order k of block i is (i K + k) mod 8.

    With K = 1 block i uses order i mod 8 (U-Shape Mamba's schedule). With K = 2 a block has an
    order and its reverse, so every token depends on the whole grid within one layer.
    """
    tables = np.stack([zigzag(height, width, index) for index in range(NUM_ORDERS)])
    picked = np.arange(depth * orders_per_layer).reshape(depth, orders_per_layer) % NUM_ORDERS
    return tables[picked]
