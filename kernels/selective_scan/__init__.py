"""The selective scan of Mamba: one public function with several implementations.

Dimension letters, in this order wherever a shape is written:
    batch      B   independent sequences
    length     L   rows of a sequence, which is also the number of time steps
    channels   D   independent recurrences
    state      N   size of the state of one channel
"""

from .api import selective_scan

__all__ = ["selective_scan"]
