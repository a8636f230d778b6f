"""The device at hand, as far as choosing and planning a kernel needs to know it."""

import jax

from kernels.selective_scan.launch_plan import MULTIPROCESSORS


def compute_capability() -> tuple[int, int] | None:
    """(major, minor) of the first NVIDIA GPU that JAX computes on, or None."""
    if jax.default_backend() != "gpu":
        return None
    text = getattr(jax.local_devices()[0], "compute_capability", "")
    major, point, minor = text.partition(".")
    return (int(major), int(minor)) if point and (major + minor).isdigit() else None


def multiprocessors() -> int:
    """Of the first GPU; of an H200 where there is none."""
    if jax.default_backend() != "gpu":
        return MULTIPROCESSORS
    return getattr(jax.local_devices()[0], "core_count", MULTIPROCESSORS)
