"""The devices at hand, as far as choosing and planning a kernel needs to know them."""

from typing import Any

import jax

from kernels.selective_scan.chips import CHIPS
from kernels.selective_scan.launch_plan import MULTIPROCESSORS


def platform() -> str:
    """What programs are lowered for unless arrays are elsewhere: "cpu", "cuda", "rocm", "tpu"."""
    default = jax.config.jax_default_device
    name = jax.default_backend() if default is None else getattr(default, "platform", default)
    if name != "gpu":
        return name
    return "rocm" if compute_capability() is None else "cuda"


def gpu() -> Any:
    """The first NVIDIA GPU of this process, whether or not it is the default, or None.

    Where a mesh says for which device programs are lowered (from jax 0.11 on), that one.
    """
    meant = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if getattr(meant, "platform", None) == "gpu":
        return meant
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return None


def compute_capability() -> tuple[int, int] | None:
    """(major, minor) of that GPU, or None."""
    found = gpu()
    text = getattr(found, "compute_capability", "")
    major, point, minor = text.partition(".")
    if point and (major + minor).isdigit():
        return int(major), int(minor)
    kind = getattr(found, "device_kind", "")
    return next((chip.capability for name, chip in CHIPS.items() if name in kind), None)


def multiprocessors() -> int:
    """Of that GPU; of an H200 where there is none."""
    return getattr(gpu(), "core_count", MULTIPROCESSORS)
