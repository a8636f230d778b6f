"""Install the package into the kernel of a notebook that has its checkout and, maybe, little else.

    sys.path.insert(0, "path/of/the/checkout")
    from sisma_jax.install import install

    install("path/of/the/checkout")

Nothing here imports what is still to be installed: only the standard library and `packaging`, which
every Jupyter kernel has.
"""

import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from sisma_jax.errors import RunError

DEVICES, PCI_DEVICES = Path("/dev"), Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
"""Vendor of TPUs, on the PCI bus."""

CUDA_13 = (580, 7.5)
"""Least driver and compute capability that CUDA 13 is taken for; not tried on a GPU yet."""


def accelerator() -> str:
    """The extra of `pyproject.toml` for this machine: "tpu", "cuda12", "cuda13", or "" for a CPU.

    A CUDA plugin that is installed already decides: JAX does not work with both.
    """
    if _has_tpu():
        return "tpu"
    gpu = _nvidia_gpu()
    if gpu is None:
        return ""
    for extra in ("cuda13", "cuda12"):
        if _version(f"jax-{extra}-plugin") is not None:
            return extra
    can_13 = all(has >= least for has, least in zip(gpu, CUDA_13, strict=True))
    return "cuda13" if can_13 else "cuda12"


def missing(checkout: Path | str, extras: Iterable[str]) -> list[str]:
    """What the checkout requires with these extras and is not installed in such a version.

    Of what it requires the extras are followed (a plugin has to be of JAX's version), and nothing
    else.
    """
    project = tomllib.loads((Path(checkout) / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return list(dict.fromkeys(text for one in wanted for text in _lacking(Requirement(one))))


def install(checkout: Path | str) -> None:
    """Install the checkout with the extra of this machine's accelerator, unless all is there.

    JAX and its plugin are named in one command of pip, which takes them of one version.

    Raises:
      RunError: pip failed, or has replaced what this kernel had loaded, which then has to restart.
    """
    extras = [extra for extra in (accelerator(), "hub") if extra]
    what = f"{checkout}[{','.join(extras)}]"
    lacking = missing(checkout, extras)
    if not lacking:
        print(f"all that {what} needs is installed")
        return
    print(f"installing {what}, for {', '.join(lacking)}", flush=True)
    before = {one.name: one.version for one in importlib.metadata.distributions()}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", what]
    if subprocess.run(command).returncode:
        raise RunError(f"pip could not install {what}: mend what it says above, and run this again")
    importlib.invalidate_caches()
    stale = sorted(_replaced(before))
    if stale:
        raise RunError(
            f"this kernel had loaded {', '.join(stale)} before pip changed it: restart the kernel "
            "(Colab: Runtime, Restart session), then run the cells again from the first on"
        )


def _has_tpu() -> bool:
    """Google's network cards are on the PCI bus too, but have none of these devices."""
    vendors = (file.read_text("utf-8").strip() for file in PCI_DEVICES.glob("*/vendor"))
    nodes = [*DEVICES.glob("accel*"), *DEVICES.glob("vfio/[0-9]*")]
    return bool(nodes) and GOOGLE in vendors


def _nvidia_gpu() -> tuple[int, float] | None:
    """Major version of the driver and compute capability of the first GPU; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True)
    if asked.returncode or not asked.stdout.strip():
        return None
    driver, capability = asked.stdout.splitlines()[0].split(",")
    return int(driver.split(".")[0]), float(capability)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lacking(requirement: Requirement, extra: str = "") -> Iterator[str]:
    """`requirement` where it is not met, or what is lacking for its own extras."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return
    found = _version(requirement.name)
    if found is None:
        yield f"{requirement.name}{requirement.specifier}"
    elif not requirement.specifier.contains(found, prereleases=True):
        yield f"{requirement.name}{requirement.specifier} (here {found})"
    else:
        for inner in requirement.extras:
            for text in importlib.metadata.requires(requirement.name) or ():
                if "extra" in text.partition(";")[2]:
                    yield from _lacking(Requirement(text), inner)


def _replaced(before: dict[str, str]) -> Iterator[str]:
    """Modules that are loaded and were changed on the disk since `before` (versions by name)."""
    after = {one.name: one.version for one in importlib.metadata.distributions()}
    changed = {name for name, version in before.items() if after.get(name) != version}
    if any(name.startswith("jax") for name in after.keys() - before.keys()):
        changed.add("jax")  # it looks for plugins once
    for module, names in importlib.metadata.packages_distributions().items():
        if module in sys.modules and changed.intersection(names):
            yield module
