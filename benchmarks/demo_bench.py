"""Time the demo stage by stage, and collect its picture and figures for the documentation.

    python benchmarks/demo_bench.py --target demo

Runs the commands of `make demo` or `make demo-long` one by one, in a checkout that has not run them
yet. Writes NAME.json and NAME.png (six rows of the sheet); demo-long also writes autoencoder.png.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import report
from PIL import Image

from sisma_jax.common import cli
from sisma_jax.data.contact_sheet import GAP, with_legend
from sisma_jax.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
ROWS = 6
"""Rows of the sheet's twelve in the documentation's picture."""
SIZE = 64
"""Side of a face in pixels."""


def main() -> None:
    parser = report.parser("demo_bench.py", __doc__)
    parser.add_argument("--target", choices=("demo", "demo-long"), default="demo",
        help="target of the Makefile (default: demo)")  # fmt: skip
    args = parser.parse_args()
    dry_run = ["make", "--no-print-directory", "--dry-run", args.target, f"PY={sys.executable}"]
    planned = subprocess.run(dry_run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    commands = [line for line in planned.splitlines() if " -m sisma_jax." in line]
    run = RunFolder(ROOT / "runs" / args.target)
    first_stage = RunFolder(ROOT / "runs" / args.target.replace("demo", "autoencoder"))
    data = ROOT / "data" / args.target.replace("demo", "synthetic")
    for made in (data, first_stage.path, run.path):
        if made.exists():
            parser.error(f"{made} exists, so its stage would take no time: move it away first")
    seconds = {}
    for command in commands:
        stage = command.partition(" -m sisma_jax.")[2].split()[0]
        started = time.monotonic()
        subprocess.run(command, shell=True, cwd=ROOT, check=True)  # it may set variables
        seconds[stage] = round(time.monotonic() - started)

    name = args.target.replace("-", "_")
    content = {
        "seconds": seconds | {"whole": sum(seconds.values())},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "report": run.report(),
        "autoencoder": first_stage.report(),
    }
    report.write(report.RESULTS / f"{name}.json", ("jax", "flax"), content)
    sheet = np.asarray(Image.open(run.path / "samples.png").convert("RGB"))
    # The legend is drawn again, below the enlarged sheet.
    cut = sheet[: ROWS * (SIZE + GAP) - GAP].repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(with_legend(cut)).save(report.RESULTS / f"{name}.png")
    if args.target == "demo-long":
        newest = max(first_stage.samples.glob("*.png"))
        Image.open(newest).save(report.RESULTS / "autoencoder.png")


if __name__ == "__main__":
    cli.run(main)
