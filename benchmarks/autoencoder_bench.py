"""The autoencoder compared with diffusers' on one machine: images per second and peak memory.

    python benchmarks/autoencoder_bench.py --torch-python PATH

Writes an autoencoder of Stable Diffusion's size with random weights as a diffusers folder, which
both read, compares their outputs for the same images, and times encoding and decoding. Every figure
comes from a separate process, the two in alternation. Memory is the peak of the device on a GPU and
of the process on a CPU. The peer needs torch and diffusers in the given Python; without them it is
left out. Prints a table and writes JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import report

from sisma_jax.common import cli

OPERATIONS = ("encode", "decode")
OURS, PEER = "sisma_jax", "diffusers"
SCRIPTS = {OURS: "autoencoder_ours.py", PEER: "autoencoder_peer.py"}


def parse() -> argparse.Namespace:
    parser = report.parser("autoencoder_bench.py", __doc__)
    add = parser.add_argument
    add("--autoencoder", help="a diffusers folder (default: random weights)")
    add("--size", type=int, default=256, help="side in pixels (default: 256)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 4], help="(default: 1 4)")
    add("--dtypes", nargs="+", default=["float32"], help="float32, bfloat16 (default: float32)")
    add("--seconds", type=float, default=10.0, help="seconds per measurement (default: 10)")
    add("--torch-python", default=sys.executable, help="a Python that has torch and diffusers")
    add("--out", type=cli.path, default=report.RESULTS / "autoencoder_cpu.json", help="JSON file")
    return parser.parse_args()


def write_random(folder: Path) -> Path:
    """Write random weights, in a child process, so that JAX takes no memory in this one."""
    script = (
        "import sys, jax, jax.numpy as jnp\n"
        "from sisma_jax.models.autoencoder import AutoencoderConfig, AutoencoderKL\n"
        "from sisma_jax.models.autoencoder.files import save_diffusers\n"
        "config = AutoencoderConfig.stable_diffusion()\n"
        "init = jax.jit(AutoencoderKL(config).init)\n"
        "params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']\n"
        "save_diffusers(sys.argv[1], config, params)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)
    return folder


def measure(side: str, python: str, settings: dict) -> dict:
    """One side's figures, or {"missing": why}."""
    script = Path(__file__).with_name(SCRIPTS[side])
    command = [python, str(script), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    args = parse()
    rows = []
    print(
        f"{'':10s}{'':8s}{'dtype':>10s}{'batch':>7s}{'images/s':>11s}{'peak MiB':>10s}{'apart':>9s}"
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = args.autoencoder or str(write_random(Path(folder) / "random"))
        for operation in OPERATIONS:
            for dtype in args.dtypes:
                for batch in args.batch_sizes:
                    outputs = {}
                    for side in SCRIPTS:
                        python = args.torch_python if side == PEER else sys.executable
                        output = Path(folder) / f"{side}.npy"
                        settings = {
                            "weights": weights, "operation": operation, "dtype": dtype,
                            "batch": batch, "size": args.size, "seconds": args.seconds,
                            "output": str(output),
                        }  # fmt: skip
                        row = {"side": side, "operation": operation, "dtype": dtype, "batch": batch}
                        row |= measure(side, python, settings)
                        if output.exists():
                            outputs[side] = np.load(output)
                            output.unlink()
                        if len(outputs) == 2:
                            difference = np.abs(outputs[OURS] - outputs[PEER]).max()
                            row["apart"] = float(difference / np.abs(outputs[PEER]).max())
                        rows.append(row)
                        show(row)
    content = {"size": args.size, "weights": args.autoencoder or "random", "rows": rows}
    report.write(args.out, ("jax", "jaxlib", "flax"), content)


def show(row: dict) -> None:
    start = f"{row['side']:10s}{row['operation']:8s}{row['dtype']:>10s}{row['batch']:7d}"
    if "missing" in row:
        print(f"{start}  left out: {row['missing']}", flush=True)
        return
    apart = f"{row['apart']:9.0e}" if "apart" in row else f"{'':9s}"
    print(f"{start}{row['images_per_second']:11.3f}{row['peak_mib']:10.0f}{apart}", flush=True)


if __name__ == "__main__":
    cli.run(main)
