"""Properties of the local devices that the choice and planning of a kernel depend on."""

from typing import Any

import jax

from .chips import CHIPS, Chip

LEAST_SHARED_MEMORY = 100 << 10
"""Bytes per multiprocessor of every GPU from sm_80 on."""


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
    counted = next((n for name in names if (n := getattr(device, name, None))), None)
    return counted or _chip(device).multiprocessors


def shared_memory() -> int:
    """Bytes of shared memory per SM of the first GPU (an H200's where there is none)."""
    capability = compute_capability()
    same = [chip.shared for chip in CHIPS.values() if chip.capability == capability]
    if same:
        return same[0]
    return _chip(None).shared if capability is None else LEAST_SHARED_MEMORY


def _chip(device: Any) -> Chip:
    """The data sheet of a GPU, an H200's if it is unknown."""
    kind = getattr(device, "device_kind", "")
    return next((chip for name, chip in CHIPS.items() if name in kind), CHIPS["H200"])
