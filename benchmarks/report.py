"""Shared by the benchmarks: a command line, and a JSON report with its circumstances."""

import argparse
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sisma_jax.common.files import write_json
from sisma_jax.common.install import nvidia_gpus, versions

RESULTS = Path(__file__).parent / "results"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of benchmark `name`, with its docstring as the help."""
    return argparse.ArgumentParser(
        prog=f"python benchmarks/{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def check_positive(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """Exit with a message unless these options, numbers or lists of them, are above 0."""
    for name in names:
        values = getattr(args, name)
        if any(not value > 0 for value in (values if isinstance(values, list) else [values])):
            parser.error(f"--{name.replace('_', '-')} {values}: give numbers above 0")


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """The "mean" over trainings with several seeds, and the standard "deviation" if there are
    several."""
    summary = {"mean": float(np.mean(values))}
    return summary | ({"deviation": float(np.std(values, ddof=1))} if len(values) > 1 else {})


def with_deviation(summary: dict[str, float], digits: int = 3) -> str:
    """The result of `over_seeds` as a cell of a table."""
    mean = f"{summary['mean']:.{digits}f}"
    return mean + (f" ± {summary['deviation']:.{digits}f}" if "deviation" in summary else "")


def portable(words: Sequence[str]) -> str:
    """A command line whose absolute paths, alone or after "=", are reduced to their names."""
    shown = []
    for word in words:
        before, equals, value = word.rpartition("=")
        shown.append(before + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(shown)


def write(
    path: Path, packages: tuple[str, ...], content: dict[str, Any], command: str | None = None
) -> None:
    """Write `content` after the command (by default the running benchmark's, `portable`), the date,
    the hardware and the versions of `packages`."""
    running = portable(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    report = {
        "command": command or running,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **versions(packages)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report | content)
    print(f"wrote {path}")


def slug(device: str) -> str:
    """The name of a device as a part of file names."""
    return "".join(c if c.isalnum() else "_" for c in device.lower())


def hardware() -> dict[str, Any]:
    """The machine's "machine" (architecture), "cores", "cpu" and, if there are any, "gpus"."""
    info = {"machine": platform.machine(), "cores": os.cpu_count(), "cpu": cpu()}
    gpus = nvidia_gpus("name", "driver_version", "clocks.max.sm")
    return info | ({"gpus": gpus} if gpus else {})


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
