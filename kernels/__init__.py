"""Accelerator kernels. They know nothing of the models which use them."""

from kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
