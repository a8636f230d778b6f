"""Versions and devices of this machine, and installing the checkout into a notebook's kernel.

    sys.path.insert(0, "path/of/the/checkout")
    from sisma_jax.common.install import install

    install("path/of/the/checkout")

Imports only the standard library and `packaging`, which every Jupyter kernel has.
"""

import importlib
import importlib.metadata
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from sisma_jax.common.errors import RunError

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where this package lies: the root of its sources, unless it is installed from a wheel."""
DEVICES, PCI_DEVICES = Path("/dev"), Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
"""PCI vendor id of TPUs."""

CUDA_13 = (580, 7.5)
"""Minimum driver version and compute capability for CUDA 13; not tried on a GPU yet."""


def accelerator() -> str:
    """The extra of `pyproject.toml` for this machine: "tpu", "cuda12", "cuda13", or "" for a CPU.

    An installed CUDA plugin decides, since JAX does not work with both.
    """
    if _has_tpu():
        return "tpu"
    gpu = _nvidia_gpu()
    if gpu is None:
        return ""
    for extra in ("cuda13", "cuda12"):
        if installed_version(f"jax-{extra}-plugin") is not None:
            return extra
    can_13 = all(has >= least for has, least in zip(gpu, CUDA_13, strict=True))
    return "cuda13" if can_13 else "cuda12"


def missing(checkout: Path | str, extras: Iterable[str]) -> list[str]:
    """Requirements of the checkout, with these extras, that are not installed in a fitting version.

    Extras of its requirements are followed (a plugin must match JAX's version), and nothing deeper.
    """
    project = tomllib.loads((Path(checkout) / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return list(dict.fromkeys(text for one in wanted for text in _lacking(Requirement(one))))


def install(checkout: Path | str) -> None:
    """Install the checkout with the extra of this machine's accelerator, if anything is missing.

    JAX and its plugin are named in one pip command, so that their versions match.

    Raises:
      RunError: pip failed, or replaced loaded packages, so that this kernel must restart.
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
        raise RunError(f"pip could not install {what}: fix what it reports above, and try again")
    importlib.invalidate_caches()
    stale = sorted(_replaced(before))
    if stale:
        raise RunError(
            f"this kernel had loaded {', '.join(stale)} before pip changed it: restart the kernel "
            "(Colab: Runtime, Restart session), then run all cells again"
        )


def how_to_install(extra: str) -> str:
    """The command that adds an extra of this package: to its checkout if it runs from there, which
    is "." in the current folder, or else to the installed package."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install {shlex.quote(f'sisma_jax[{extra}]')}"
    checkout = "." if Path.cwd() == CHECKOUT else CHECKOUT
    return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"


def installed_version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of these distributions that are installed, by name."""
    found = {package: installed_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


def nvidia_gpus(*fields: str) -> list[str]:
    """Values of these fields of `nvidia-smi --query-gpu`, separated by commas, one entry a GPU.

    Empty if there is no GPU or no driver.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return [] if result.returncode else result.stdout.splitlines()


def _has_tpu() -> bool:
    """Whether there is a TPU. Google's network cards share its vendor id, not its device nodes."""
    vendors = (file.read_text("utf-8").strip() for file in PCI_DEVICES.glob("*/vendor"))
    nodes = [*DEVICES.glob("accel*"), *DEVICES.glob("vfio/[0-9]*")]
    return bool(nodes) and GOOGLE in vendors


def _nvidia_gpu() -> tuple[int, float] | None:
    """Major version of the driver and compute capability of the first GPU; None without one."""
    gpus = nvidia_gpus("driver_version", "compute_cap")
    if not gpus:
        return None
    driver, capability = gpus[0].split(",")
    return int(driver.split(".")[0]), float(capability)


def _lacking(requirement: Requirement, extra: str = "") -> Iterator[str]:
    """Yield `requirement` if it is not met, otherwise what its own extras lack."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return
    installed = installed_version(requirement.name)
    if installed is None:
        yield f"{requirement.name}{requirement.specifier}"
    elif not requirement.specifier.contains(installed, prereleases=True):
        yield f"{requirement.name}{requirement.specifier} (here {installed})"
    else:
        for inner in requirement.extras:
            for text in importlib.metadata.requires(requirement.name) or ():
                if "extra" in text.partition(";")[2]:
                    yield from _lacking(Requirement(text), inner)


def _replaced(before: dict[str, str]) -> Iterator[str]:
    """Loaded modules whose distributions have changed since `before` (versions by name)."""
    after = {one.name: one.version for one in importlib.metadata.distributions()}
    changed = {name for name, version in before.items() if after.get(name) != version}
    if any(name.startswith("jax") for name in after.keys() - before.keys()):
        changed.add("jax")  # it looks for plugins only once
    for module, names in importlib.metadata.packages_distributions().items():
        if module in sys.modules and changed.intersection(names):
            yield module
