"""The selective scan of Mamba: one public function with several implementations.

Dimension letters, in this order wherever a shape is written:
    batch      B   independent sequences
    length     L   rows of a sequence, which is also the number of time steps
    channels   D   independent recurrences
    state      N   size of the state of one channel

Modules, in reading order:
    api          the function, its arguments and the choice of an implementation
    reference    one time step after another, as the recurrence is written
    associative  a parallel prefix over time
    chunked      one loop over time with its own gradient; the equations of all gradients
    pallas       the same algorithm as kernels for NVIDIA GPUs
    automatic    the default: a kernel in programs for GPUs, "chunked" in all others
    resets       resets of the state, for all implementations alike
    segments     a length that is split over several devices, for all implementations alike
    wide         gradients of 16-bit arguments in float32
    checkpoints  the name of what is stored for the gradient
    oracle       float64 NumPy, for tests, benchmarks and `python -m sisma_jax.doctor`
"""

from .api import selective_scan
from .automatic import kernel_for_gpus
from .checkpoints import CHECKPOINTS

__all__ = ["CHECKPOINTS", "kernel_for_gpus", "selective_scan"]
