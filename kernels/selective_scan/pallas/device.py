"""Properties of the local devices that the choice and planning of a kernel depend on."""

from typing import Any

import jax

from .chips import CHIPS
from .plan import MULTIPROCESSORS


def platform() -> str:
    """Platform of JAX's default device: "cpu", "cuda", "rocm" or "tpu"."""
    default = jax.config.jax_default_device
    name = jax.default_backend() if default is None else getattr(default, "platform", default)
    if name != "gpu":
        return name
    return "rocm" if compute_capability() is None else "cuda"


def gpu() -> Any:
    """The first NVIDIA GPU of this process, even if it is not the default device; None without one.

    If a mesh names the device that programs are lowered for (from jax 0.11), it is that device.
    """
    target = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if getattr(target, "platform", None) == "gpu":
        return target
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return None


def compute_capability() -> tuple[int, int] | None:
    """(major, minor) of the first GPU, or None without one."""
    device = gpu()
    text = getattr(device, "compute_capability", "")
    major, point, minor = text.partition(".")
    if point and (major + minor).isdigit():
        return int(major), int(minor)
    kind = getattr(device, "device_kind", "")
    return next((chip.capability for name, chip in CHIPS.items() if name in kind), None)


def multiprocessors() -> int:
    """Number of SMs of the first GPU (an H200's where there is none)."""
    device = gpu()
    # A device that is only named by a mesh may have `num_cores`.
    names = ("core_count", "num_cores")
    return next((n for name in names if (n := getattr(device, name, None))), MULTIPROCESSORS)
