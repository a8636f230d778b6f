"""The scan as Pallas kernels: forward and backward, in Triton and in Mosaic GPU.

In the order in which they are best read:
    layout           what a program computes, and what the bodies of the kernels are given
    kernel_forward   the body of the forward kernel
    kernel_backward  the body of the backward kernel
    launch           the scan around the two kernels
    plan             how the work is laid over lanes and warps; chips and device: of which GPU
    triton, mosaic   the two backends, each with its machine
"""
