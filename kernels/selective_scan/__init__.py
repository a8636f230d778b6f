"""The selective scan of Mamba, with one public function and several implementations of it.

Dimension letters, in this order wherever a shape is written:
    batch      B   independent sequences
    length     L   rows of a sequence, which is also the number of time steps
    channels   D   independent recurrences
    state      N   size of a channel's state
"""

from kernels.selective_scan.api import selective_scan

__all__ = ["selective_scan"]
