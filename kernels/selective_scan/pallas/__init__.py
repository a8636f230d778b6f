"""The scan as Pallas kernels: forward and backward, in Triton and in Mosaic GPU.

In the order in which they are best read:
    launch           the scan around the kernels, and what a launch consists of
    instances, grid  of a launch: the mapped axes of `jax.vmap`, and how many programs it may have
    sharding         the batch over several devices
    chips, device    the GPU that a launch is planned for
    chunk_values     what both backward kernels keep of a chunk
    mosaic           Mosaic's kernels: mosaic_forward and mosaic_backward are their bodies,
                     mosaic_ring the tiles in shared memory, mosaic_plan sizes and segments
    triton           Triton's kernels: triton_forward and triton_backward are their bodies, layout
                     and plan say how the work is laid over lanes and warps
"""
