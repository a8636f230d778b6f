"""Accelerator kernels, independent of the models that use them."""

from kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
