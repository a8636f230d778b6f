"""Small box-averaged pictures, by whose distance near-copies are found without a network."""

import numpy as np
from jaxtyping import Float32, UInt8

SIDE = 16
"""Side of the thumbnail of a picture whose sides are multiples of it."""


def shrunk(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n d"]:
    """Pictures averaged over equal boxes, flattened, in [0, 1].

    There are `SIDE` boxes along a side that is a multiple of `SIDE`, and up to 2 `SIDE` - 1 along
    others, whose last pixels may be left out. Smaller pictures keep their pixels.
    """
    n, height, width, channels = images.shape
    rows, columns = max(1, height // SIDE), max(1, width // SIDE)
    kept = images[:, : height // rows * rows, : width // columns * columns].astype(np.float32)
    boxes = kept.reshape(n, height // rows, rows, width // columns, columns, channels)
    return boxes.mean((2, 4)).reshape(n, -1) / 255
