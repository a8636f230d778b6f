"""The scan as Pallas kernels: forward and backward, in Triton and in Mosaic GPU."""
