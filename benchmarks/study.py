"""Ablation of SISMA's choices on the synthetic set: one short training per choice, scored alike.

    python benchmarks/study.py --steps 360 --seeds 1

Every variant differs from `configs/synthetic.py` only as its name says, with the same data,
training steps, batch and learning rate. Trained runs, faces and measurements are kept in --workdir,
so that an interrupted study continues. Needs the demo's data and first stage, and a face parser
(`make demo`; `python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser`).

Reported by variant: loss on the test split, mIoU and pixel accuracy of the face parser, FD-parser,
faces per second (synthesis, batches of 16, timed in turn at the end), parameters, GMACs; and the
scores of the base by solver and steps. With more than one seed: mean and deviation. The number of
scan orders applies to both mixers, Self-Mamba and Cross-Mamba.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import RESULTS, over_seeds, parser, with_deviation, write

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.evaluation.report import ReportFolder
from sisma_jax.evaluation.scoring import Row
from sisma_jax.evaluation.speed import measure_speed
from sisma_jax.evaluation.tables import Table
from sisma_jax.flows import rectified

VARIANTS = {
    "base": {},
    "2 orders": {"model.orders": 2},
    "4 orders": {"model.orders": 4},
    "shift": {"model.modulation": "shift"},
    "patch 2": {"model.patch": 2},
    "attention": {"model.mixer": "attention", "model.attention_head": 32, "model.ff_ratio": 7},
}
"""Config keys by variant. The attention twin's wider feed-forward compensates for the additional
parameters of Mamba's mixers."""
SOLVERS = {"euler": (3, 6, 12, 25, 50), "heun": (3, 6, 12, 25)}
"""Steps of the base's sweep; a step of heun takes two velocities."""
SCORES = ("miou", "accuracy", "fd_parser")


def run(*arguments: object) -> None:
    """Run one of the project's commands; raises CalledProcessError if it fails."""
    print("$ python -m", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True)


def train(folder: Path, overrides: dict[str, Any], steps: int, seed: int) -> None:
    settings = {"train.steps": steps, "evaluation.every": steps, "seed": seed} | overrides
    keys = [f"--config.{key}={value}" for key, value in settings.items()]
    run("sisma_jax.train", "--config=configs/synthetic.py", f"--workdir={folder}", *keys)


def evaluate(folder: Path, out: Path, count: int, solver: str, steps: Sequence[int]) -> None:
    run(
        "sisma_jax.evaluate", "--workdir", folder, "--out", out, "--metrics", "fd,miou,acc",
        "--count", count, "--solver", solver, "--steps", ",".join(map(str, steps)),
    )  # fmt: skip


def test_loss(folder: Path) -> float:
    """Test loss of the run's last evaluation."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["test_loss"] for row in rows if "test_loss" in row][-1]


def measured(folders: Sequence[Path], out: Path, steps: int) -> dict[str, Any]:
    """Figures of one variant, from its runs with different seeds."""
    rows = ReportFolder(out).table()
    synthesizer = Synthesizer.load(folders[0])
    speed = measure_speed(
        synthesizer, steps=[steps], solvers=["euler"], guidances=[1.0], batches=[16]
    )
    (case,) = speed["cases"]
    scores = {
        key: over_seeds([_row(rows, folder, "euler", steps).scores[key] for folder in folders])
        for key in SCORES
    }
    return {
        "parameters": speed["parameters"]["model"],
        "gmacs_per_face": case["gmacs_per_image"],
        "test_loss": over_seeds([test_loss(folder) for folder in folders]),
        **scores,
        "faces_per_second": case["images_per_second"],
    }


def _row(rows: list[Row], folder: Path, solver: str, steps: int) -> Row:
    wanted = {"model": folder.name, "solver": solver, "steps": steps, "guidance": 1.0}
    return next(row for row in rows if wanted.items() <= row.settings.items())


def tables(results: dict[str, Any]) -> list[Table]:
    """Tables of the variants, and of solvers and steps."""
    lines = [
        [
            name,
            f"{one['parameters']:,}",
            f"{one['gmacs_per_face']:.2f}",
            *(with_deviation(one[key]) for key in ("test_loss", *SCORES)),
            f"{one['faces_per_second']:.1f}",
        ]
        for name, one in results["variants"].items()
    ]
    columns = ["", "parameters", "GMAC per face", "test loss ↓", "mIoU ↑", "accuracy ↑"]
    variants = Table("Variants", [*columns, "FD-parser ↓", "faces/s ↑"], lines)
    sweep = [
        [
            one["solver"],
            one["steps"],
            one["velocities"],
            *(with_deviation(one[key]) for key in SCORES),
        ]
        for one in results["solvers"]
    ]
    columns = ["solver", "steps", "velocities", "mIoU ↑", "accuracy ↑", "FD-parser ↓"]
    return [variants, Table("Solver and steps, base", columns, sweep)]


def main() -> None:
    arguments = parser("study.py", __doc__)
    add = arguments.add_argument
    add("--steps", type=int, default=360, help="training steps (default: 360)")
    add("--seeds", type=int, default=1, help="trainings of each variant (default: 1)")
    add("--count", type=int, default=512, help="test faces and masks (default: 512)")
    add("--solver-steps", type=int, default=25, help="Euler steps of the variants (default: 25)")
    add("--workdir", type=cli.path, default=Path("runs/study"), help="default: runs/study")
    add("--out", type=cli.path, default=RESULTS / "study_cpu.json", help="JSON file")
    args = arguments.parse_args()

    out = args.workdir / "report"
    folders = {
        name: [args.workdir / f"{name.replace(' ', '-')}-{seed}" for seed in range(args.seeds)]
        for name in VARIANTS
    }
    for name, overrides in VARIANTS.items():
        for seed, folder in enumerate(folders[name]):
            train(folder, overrides, args.steps, seed)
            evaluate(folder, out, args.count, "euler", [args.solver_steps])
    for folder in folders["base"]:
        for solver, steps in SOLVERS.items():
            evaluate(folder, out, args.count, solver, steps)
    rows = ReportFolder(out).table()
    results = {
        "training": {"steps": args.steps, "seeds": args.seeds, "test_faces": args.count},
        "variants": {name: measured(x, out, args.solver_steps) for name, x in folders.items()},
        "solvers": [
            {
                "solver": solver,
                "steps": steps,
                "velocities": steps * rectified.VELOCITIES[solver],
            }
            | {
                key: over_seeds([_row(rows, x, solver, steps).scores[key] for x in folders["base"]])
                for key in SCORES
            }
            for solver, counts in SOLVERS.items()
            for steps in counts
        ],
    }
    for table in tables(results):
        print(table.markdown())
    write(args.out, ("jax", "jaxlib", "flax"), results)


if __name__ == "__main__":
    cli.run(main)
