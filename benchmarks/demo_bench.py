"""The demo, timed stage by stage, and its picture and figures for the README.

    python benchmarks/demo_bench.py --target demo

Runs the commands of `make demo` or `make demo-long` one by one. Stages that were done before are
not timed: for times, begin where data/ and runs/ do not have them yet. Writes NAME.json, and of its
pictures NAME.png (the sheet) and, of the long one, autoencoder.png.
"""

import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import report
from PIL import Image

from sisma_jax.contact_sheet import with_legend
from sisma_jax.training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
ROWS = 6
"""Of the sheet's twelve, in the README's picture."""
SIZE, GAP = 64, 2


def main() -> None:
    parser = report.parser("demo_bench.py", __doc__)
    parser.add_argument("--target", choices=("demo", "demo-long"), default="demo",
        help="of the Makefile (default: demo)")  # fmt: skip
    args = parser.parse_args()
    asked = ["make", "--no-print-directory", "--dry-run", args.target, f"PY={sys.executable}"]
    planned = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    commands = [line for line in planned.splitlines() if " -m sisma_jax." in line]
    run = RunFolder(ROOT / "runs" / args.target)
    first_stage = RunFolder(ROOT / "runs" / args.target.replace("demo", "autoencoder"))
    done = {
        "data.synthetic": (ROOT / "data" / args.target.replace("demo", "synthetic")).exists(),
        "train_autoencoder": first_stage.config_file.exists(),
        "train": run.config_file.exists(),
        "demo": run.report_file.exists(),
    }
    seconds = {}
    for command in commands:
        stage = command.partition(" -m sisma_jax.")[2].split()[0]
        started = time.monotonic()
        subprocess.run(shlex.split(command), cwd=ROOT, check=True)
        seconds[stage] = None if done[stage] else round(time.monotonic() - started)

    name = args.target.replace("-", "_")
    content = {
        "seconds": seconds,
        "report": run.report(),
        "autoencoder": first_stage.report(),
    }
    if not any(done.values()):
        content["seconds"]["whole"] = sum(seconds.values())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        content["peak_memory_mib"] = round(peak / 2**10)
    report.write(report.RESULTS / f"{name}.json", ("jax", "flax"), content)
    sheet = np.asarray(Image.open(run.path / "samples.png").convert("RGB"))
    # The legend is drawn anew, below a sheet that has grown.
    cut = sheet[: ROWS * (SIZE + GAP) - GAP].repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(with_legend(cut)).save(report.RESULTS / f"{name}.png")
    if args.target == "demo-long":
        newest = max(first_stage.samples.glob("*.png"))
        Image.open(newest).save(report.RESULTS / "autoencoder.png")


if __name__ == "__main__":
    main()
