"""Time and memory of the selective scan's implementations, compared in one run.

    python benchmarks/scan_bench.py

On a CPU it measures the implementations in plain JAX, on an NVIDIA GPU also the Pallas kernels,
with the ratio to a lower bound for the chip. Every implementation is first compared with float64
NumPy; a wrong one is not timed. Prints a table and writes JSON and a plot of time and memory
over length.
"""

import argparse
import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
import report
import scan_cases
import scan_peer
import scan_plot
from hardware import bounds

from sisma_jax.common import cli
from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS

CPU_SIZES = ("8,256,192,8", "2,1024,384,16")
PACKAGES = ("jax", "jaxlib", "torch")
"""Whose versions are reported."""
GPU_SIZES = (
    "8,1024,1536,16",
    "64,1024,1536,16",
    "1,1024,1536,16",
    "1,4096,1536,16",
    "64,256,768,16",
    "8,16384,512,16",
)


def parse() -> argparse.Namespace:
    on_gpu = jax.default_backend() == "gpu"
    parser = report.parser("scan_bench.py", __doc__)
    add = parser.add_argument
    names = [n for n in IMPLEMENTATIONS if on_gpu or not n.startswith("pallas")]
    add("--sizes", nargs="+", metavar="B,L,D,N", default=GPU_SIZES if on_gpu else CPU_SIZES,
        help="batch, length, channels, states (default: %(default)s)")  # fmt: skip
    add("--implementations", nargs="+", choices=[*IMPLEMENTATIONS], default=names, metavar="NAME",
        help="(default: %(default)s)")  # fmt: skip
    add("--dtypes", nargs="+", choices=scan_cases.DTYPES, metavar="DTYPE",
        default=["bfloat16", "float32"] if on_gpu else ["float32"],
        help="dtypes of u, delta, B, C and z (default: %(default)s)")  # fmt: skip
    add("--options", nargs="+", choices=("plain", "full"), default=["plain", "full"],
        help="full: with z, delta_bias and softplus (default: %(default)s)")  # fmt: skip
    add("--orders", nargs="+", type=int, default=[1], metavar="K",
        help="scan orders per layer (default: %(default)s)")  # fmt: skip
    add("--lengths", nargs="*", type=int, metavar="L",
        default=[256, 1024, 4096, 16384] if on_gpu else [256, 512, 1024],
        help="lengths of the plot; none for no plot (default: %(default)s)")  # fmt: skip
    add("--repeats", type=int, default=20 if on_gpu else 5,
        help="measurements per median (default: %(default)s)")  # fmt: skip
    add("--peer", choices=["mamba_ssm"],
        help="also measure its CUDA scan, if it can be imported (y compared, gradients only timed)",
    )  # fmt: skip
    add("--out", type=cli.path, default=report.RESULTS,
        help="folder for scan_<device>.json and .png (default: benchmarks/results)")  # fmt: skip
    args = parser.parse_args()
    try:
        args.sizes = [scan_cases.Size.parse(text) for text in args.sizes]
    except ValueError as error:
        parser.error(str(error))
    for name in ("repeats", "orders", "lengths"):
        values = getattr(args, name)
        if any(value < 1 for value in ([values] if name == "repeats" else values)):
            parser.error(f"--{name} {values}: give whole numbers of at least 1")
    return args


def main() -> None:
    args = parse()
    cases = [
        scan_cases.Case(size, name, dtype, full=options == "full", orders=orders)
        for size in args.sizes
        for dtype in args.dtypes
        for options in args.options
        for orders in args.orders
        for name in [*args.implementations, *([args.peer] if args.peer else [])]
    ]
    print(f"{device_name()}, jax {jax.__version__}")
    print(HEADER)
    rows = [measure(case, args.repeats) for case in cases]
    curves = []
    if args.lengths:
        size = args.sizes[0]
        for name in args.implementations:
            for length in args.lengths:
                at_length = dataclasses.replace(size, length=length)
                case = scan_cases.Case(at_length, name, args.dtypes[0], full=True, orders=1)
                curves.append(measure(case, args.repeats))
    write(args, rows, curves)
    if any(row["status"] == "wrong" for row in rows + curves):
        sys.exit(1)


HEADER = (
    f"{'size':>18} {'dtype':>8} {'options':>7} {'K':>2} {'implementation':>14} "
    f"{'forward':>10} {'backward':>10} {'both':>10} {'host':>10} {'of bound':>11} "
    f"{'temp MiB':>9} {'error':>8}"
)


def measure(case: scan_cases.Case, repeats: int) -> dict:
    """One row: the case, and its times or the reason why it has none."""
    row = {**dataclasses.asdict(case), "status": "measured"}
    try:
        of_peer = case.implementation == "mamba_ssm"
        row["errors"] = (scan_peer if of_peer else scan_cases).largest_errors(case)
        limits = scan_cases.TOLERANCE[case.dtype]
        if not all(error < limits[kind] for kind, error in row["errors"].items()):
            row["status"] = "wrong"
        else:
            row |= (scan_peer if of_peer else scan_cases).times(case, repeats)
            best = bounds(device_name(), case.size, case.dtype, case.full, case.orders)
            if best is not None and not of_peer:
                row["bound_us"] = best
                row["of_bound"] = {
                    kind: best[kind] / row["device_us"][kind] for kind in ("forward", "backward")
                }
    except (NotImplementedError, ImportError) as error:
        row |= {"status": "not measured", "reason": str(error)}
    except jax.errors.JaxRuntimeError as error:
        row |= {"status": "not measured", "reason": str(error).splitlines()[0][:200]}
    print(line(row), flush=True)
    return row


def line(row: dict) -> str:
    size = ",".join(str(x) for x in row["size"].values())
    start = (
        f"{size:>18} {row['dtype']:>8} {'full' if row['full'] else 'plain':>7} "
        f"{row['orders']:>2} {row['implementation']:>14} "
    )
    if row["status"] == "wrong":
        errors = ", ".join(f"{error:.1e} of {kind}" for kind, error in row["errors"].items())
        return start + f"WRONG, not timed: errors {errors} against float64"
    if row["status"] != "measured":
        return start + f"not measured: {row['reason']}"
    times = [row["device_us"].get(kind) for kind in scan_cases.KINDS]
    times.append(row.get("host_us", {}).get("both"))
    share = row.get("of_bound")
    shares = f"{share['forward']:.0%} {share['backward']:.0%}" if share else "-"
    memory = f"{row['temp_mib']:.1f}" if "temp_mib" in row else "-"
    error = f"{max(row['errors'].values()):.0e}" if "errors" in row else "-"
    columns = " ".join(f"{'-' if time is None else duration(time):>10}" for time in times)
    return f"{start}{columns} {shares:>11} {memory:>9} {error:>8}"


def duration(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:.1f} us"
    return f"{microseconds / 1e3:.2f} ms"


def device_name() -> str:
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind


def write(args: argparse.Namespace, rows: list[dict], curves: list[dict]) -> None:
    device = "cpu" if jax.default_backend() == "cpu" else device_name()
    path = args.out / f"scan_{report.slug(device)}.json"
    report.write(path, PACKAGES, {"rows": rows, "over_length": curves})
    if curves:
        picture = path.with_suffix(".png")
        scan_plot.draw(curves, picture, title=device_name())
        print(f"wrote {picture}")


if __name__ == "__main__":
    jnp.zeros(()).block_until_ready()  # fail first if the device cannot be used
    cli.run(main)
