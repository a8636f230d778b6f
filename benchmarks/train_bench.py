"""Training throughput: images per second, MFU, memory and compile time of training steps.

    python benchmarks/train_bench.py

Every row is a training step (draws, loss, gradient, clip, AdamW, average) on random data that is
already on the devices, compiled and timed in a separate process: from cached latents, and from
images, which the autoencoder (Stable Diffusion's size, random weights) encodes in every step.

    MFU = 6 x MACs of an image x images per second / peak

where the peak is the rate of large matrix products in the compute type, measured in the same
process (`sisma_jax.devices.throughput`), and the MACs are SISMA's own (`sisma_jax.models.cost`):
without the autoencoder's. Memory is the peak of a device, or of the process on a CPU, and with
--compile-only XLA's plan; a batch that does not fit is reported. Prints a table and writes JSON.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import report

from sisma_jax.common import cli
from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS
from sisma_jax.models.sisma.config import REMAT_POLICIES

SIZES = ("tiny", "small", "base", "large", "xlarge")
SOURCES = ("latents", "images")
CASE = Path(__file__).with_name("train_case.py")
HEADER = (
    f"{'size':>7} {'source':>8} {'scan':>14} {'remat':>6} {'batch':>5} {'images/s':>9} "
    f"{'ms/step':>9} {'MFU':>6} {'GiB':>6} {'compile s':>9}"
)


def parse() -> argparse.Namespace:
    on_gpu = bool(report.hardware().get("gpus"))
    scans = ["auto", "chunked"] if on_gpu else ["chunked", "associative", "sequential"]
    parser = report.parser("train_bench.py", __doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, metavar="SIZE",
        default=["small", "base", "large", "xlarge"] if on_gpu else ["tiny"])  # fmt: skip
    add("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="SOURCE")
    add("--scans", nargs="+", choices=["auto", *IMPLEMENTATIONS], default=scans, metavar="NAME",
        help="implementations of the scan to compare")  # fmt: skip
    add("--remat", nargs="+", choices=REMAT_POLICIES, default=["none"], metavar="POLICY")
    add("--batches", nargs="+", type=int, default=[64 if on_gpu else 8], metavar="N",
        help="batch sizes over all devices; several give a table of memory")  # fmt: skip
    add("--fsdp", type=int, default=1, help="mesh.fsdp (default: 1)")
    add("--seconds", type=float, default=5.0, help="seconds per measurement (default: 5)")
    add("--compile-only", action="store_true", help="compile time and planned memory, no steps")
    add("--out", type=cli.path, help="JSON file (default: results/train_<device>.json)")
    args = parser.parse_args()
    report.check_positive(parser, args, "batches", "fsdp", "seconds")
    if args.compile_only:
        args.seconds = 0.0
    return args


def measure(case: dict, seconds: float, fsdp: int) -> dict:
    settings = json.dumps({**case, "seconds": seconds, "fsdp": fsdp})
    command = [sys.executable, str(CASE), settings]
    # Unfiltered tracebacks end with the error, not with a note on filtering.
    environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return {**case, "status": "measured", **json.loads(done.stdout.splitlines()[-1])}
    if "RESOURCE_EXHAUSTED" in done.stderr or done.returncode == -9:
        return {**case, "status": "out of memory"}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {**case, "status": "failed", "reason": lines[-1][:300] if lines else "no message"}


def line(row: dict) -> str:
    start = (
        f"{row['size']:>7} {row['source']:>8} {row['scan']:>14} {row['remat']:>6} "
        f"{row['batch']:>5} "
    )
    if row["status"] != "measured":
        return start + row["status"] + (f": {row['reason']}" if "reason" in row else "")
    times = (
        f"{row['images_per_second']:>9.1f} {row['ms_per_step']:>9.1f} {row['mfu']:>6.1%} "
        if "mfu" in row
        else f"{'-':>9} {'-':>9} {'-':>6} "
    )
    memory = row.get("peak_gib", row["planned_gib"])
    return f"{start}{times}{memory:>6.2f} {row['compile_seconds']:>9.1f}"


def main() -> None:
    args = parse()
    print(HEADER)
    rows = []
    for size, source, scan, remat, batch in itertools.product(
        args.sizes, args.sources, args.scans, args.remat, args.batches
    ):
        case = dict(size=size, source=source, scan=scan, remat=remat, batch=batch)
        rows.append(measure(case, args.seconds, args.fsdp))
        print(line(rows[-1]), flush=True)
    device = next((row["device"] for row in rows if "device" in row), "none")
    out = args.out or report.RESULTS / f"train_{report.slug(device)}.json"
    report.write(out, ("jax", "jaxlib", "flax", "optax"), {"rows": rows})
    if any(row["status"] == "failed" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
