"""Error of a trained model's faces by solver and steps, against a solution of many steps.

    python benchmarks/solver_bench.py --workdir runs/demo --out benchmarks/results/solver_cpu.json

Errors are those of the solver alone, at one noise per mask: the root mean square of the latents'
difference to the solution, relative to that of the solution, and the mean absolute difference of
the images in grey levels. The solution is Heun's method in `--reference-steps` equal steps; one of
its steps takes two velocities.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sisma_jax import Synthesizer
from sisma_jax.data import synthetic
from sisma_jax.evaluation.speed import circumstances
from sisma_jax.flows.rectified import VELOCITIES
from sisma_jax.synthesis.options import SamplingOptions

CASES = (
    ("euler", 12, 1.0), ("euler", 25, 1.0), ("euler", 50, 1.0), ("ab2", 12, 1.0), ("ab2", 25, 1.0),
    ("heun", 6, 1.0), ("heun", 12, 1.0), ("ab2", 12, 1.5), ("ab2", 12, 0.67),
)  # fmt: skip
"""Solver, steps and shift."""


def measured(
    synthesizer: Synthesizer, labels: np.ndarray, guidance: float, reference_steps: int
) -> list[dict]:
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
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="run folder of a model of synthetic faces")
    add("--out", type=Path, required=True, help="JSON file for the results")
    add("--count", type=int, default=16, help="masks (default: 16)")
    add("--guidance", type=float, nargs="+", default=[1.0, 1.5], help="(default: 1 1.5)")
    add("--reference-steps", type=int, default=200, help="(default: 200)")
    args = parser.parse_args()
    synthesizer = Synthesizer.load(args.workdir)
    size = synthesizer.config.image_size
    # Faces of a seed that no training set of the configs has.
    labels = np.stack([synthetic.face(7, index, size)[1] for index in range(args.count)])
    rows = [
        row
        for guidance in args.guidance
        for row in measured(synthesizer, labels, guidance, args.reference_steps)
    ]
    result = {
        "step": synthesizer.step, "count": args.count, "image_size": size,
        "reference_steps": args.reference_steps, "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(circumstances() | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
