"""Error of a trained model's faces by solver and steps, against a solution of many steps.

    python benchmarks/solver_bench.py --workdir runs/demo

Errors are those of the solver alone, at one noise per mask: the root mean square of the latents'
difference to the solution, relative to that of the solution, and the mean absolute difference of
the images in grey levels. The solution is Heun's method in `--reference-steps` equal steps; one of
its steps takes two velocities.
"""

from pathlib import Path
from typing import Any

import numpy as np
import report

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.data import synthetic
from sisma_jax.flows.rectified import VELOCITIES
from sisma_jax.synthesis.options import SamplingOptions

CASES = (
    ("euler", 12, 1.0), ("euler", 25, 1.0), ("euler", 50, 1.0), ("ab2", 12, 1.0), ("ab2", 25, 1.0),
    ("heun", 6, 1.0), ("heun", 12, 1.0), ("ab2", 12, 1.5), ("ab2", 12, 0.67),
)  # fmt: skip
"""Solver, steps and shift."""


def measured(
    synthesizer: Synthesizer, labels: np.ndarray, guidance: float, reference_steps: int
) -> list[dict[str, Any]]:
    """Rows of all cases with one guidance."""
    options = SamplingOptions(steps=reference_steps, solver="heun", guidance=guidance)
    solution = synthesizer.latents(labels, options)
    images = synthesizer.decode(solution).astype(float)
    rows = []
    for solver, steps, shift in CASES:
        options = SamplingOptions(solver=solver, steps=steps, shift=shift, guidance=guidance)
        latents = synthesizer.latents(labels, options)
        error = np.sqrt(np.mean((latents - solution) ** 2) / np.mean(solution**2))
        levels = np.abs(synthesizer.decode(latents) - images).mean()
        row = {
            "solver": solver, "steps": steps, "shift": shift, "guidance": guidance,
            "velocities": steps * VELOCITIES[solver], "latent_error": float(error),
            "grey_levels": float(levels),
        }  # fmt: skip
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = report.parser("solver_bench.py", __doc__)
    add = parser.add_argument
    add("--workdir", type=cli.path, default=Path("runs/demo"),
        help="run of a model of synthetic faces (default: runs/demo)")  # fmt: skip
    add("--count", type=int, default=16, help="masks (default: 16)")
    add("--guidance", type=float, nargs="+", default=[1.0, 1.5], help="(default: 1 1.5)")
    add("--reference-steps", type=int, default=200, help="(default: 200)")
    add("--out", type=cli.path, default=report.RESULTS,
        help="folder for solver_cpu.json (default: benchmarks/results)")  # fmt: skip
    args = parser.parse_args()
    synthesizer = Synthesizer.load(args.workdir)
    size = synthesizer.config.image_size
    # Faces of a seed that no config trains on.
    labels = np.stack([synthetic.face(7, index, size)[1] for index in range(args.count)])
    rows = [
        row
        for guidance in args.guidance
        for row in measured(synthesizer, labels, guidance, args.reference_steps)
    ]
    content = {
        "training_step": synthesizer.step, "masks": args.count, "image_size": size,
        "reference_steps": args.reference_steps, "rows": rows,
    }  # fmt: skip
    report.write(args.out / "solver_cpu.json", ("jax", "flax"), content)


if __name__ == "__main__":
    cli.run(main)
