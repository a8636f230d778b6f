"""How far pictures are apart."""

import numpy as np


def largest_difference(a, b):
    """The largest difference of two arrays of bytes, in grey levels."""
    return np.abs(a.astype(int) - b.astype(int)).max()
