"""Style transfer from reference faces: figures of several runs, pictures of the first.

    python benchmarks/style_bench.py --workdirs runs/demo-style runs/demo-style-mamba

Makes test faces in their own style, in that of another face, and from noise alone; then one class
at a time takes another face's style (`sisma_jax.evaluation.styles` describes the measurements).
Every run makes faces of the same masks, from the same noise. Writes NAME_cpu.json and, for data
whose pictures may be shown, NAME_*.png.
"""

import argparse
import dataclasses
from pathlib import Path

import report
from PIL import Image

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.common.config import section
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import fixed_batch
from sisma_jax.evaluation.generation import Sampling
from sisma_jax.evaluation.styles import FACES, measure_styles, style_tables
from sisma_jax.metrics.regions import explained_variance
from sisma_jax.models.generators import generator
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.options import SamplingOptions

SHEETS = {
    "reconstruction": "reconstruction", "total swap": "total", "partial swap": "partial",
    "parts of several": "several", "interpolation from": "between",
    "interpolation of": "between_one",
}  # fmt: skip
"""File names of the pictures by the beginnings of their captions."""


def measure(run: Path, count: int, sampling: Sampling) -> tuple[dict, dict]:
    """Figures and sheets of one run; a model that draws in one pass has one sampling."""
    synthesizer = Synthesizer.load(run)
    if generator(synthesizer.config).one_pass:
        sampling = dataclasses.replace(sampling, options=SamplingOptions(steps=1))
    test = section(DataConfig, RunFolder(run).config(), "data").open("test", ("image", "labels"))
    faces = fixed_batch(test, count)
    figures, sheets = measure_styles(synthesizer, faces["image"], faces["labels"], sampling)
    if synthesizer.draws_styles:
        plain = synthesizer(faces["labels"], seed=sampling.seed, steps=sampling.options.steps)
        figures["regions_of_noise"] = float(explained_variance(plain, faces["labels"]).mean())
    return {"step": synthesizer.step} | figures, sheets


def main() -> None:
    parser = report.parser("style_bench.py", __doc__)
    parser.add_argument("--workdirs", type=cli.path, nargs="+", default=[Path("runs/demo-style")],
        help="runs with style conditioning (default: runs/demo-style)")  # fmt: skip
    parser.add_argument("--count", type=int, default=FACES,
        help=f"test faces (default: {FACES})")  # fmt: skip
    parser.add_argument("--steps", type=int, default=12, help="solver steps (default: 12)")
    parser.add_argument("--style-guidance", type=float, default=1.0,
        help="style guidance; 1 is the plain model (default: 1)")  # fmt: skip
    parser.add_argument("--out", type=cli.path, default=report.RESULTS,
        help="folder for NAME_cpu.json and NAME_*.png (default: benchmarks/results)")  # fmt: skip
    parser.add_argument("--name", default="style", help="prefix of the files (default: style)")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True,
        help="whether pictures are written, which show references of the data set (default: they "
        "are)")  # fmt: skip
    args = parser.parse_args()
    report.check_positive(parser, args, "count", "steps")
    args.out.mkdir(parents=True, exist_ok=True)
    options = SamplingOptions(steps=args.steps, style_guidance=args.style_guidance)
    sampling = Sampling(options=options, seed=0)
    runs = {}
    for run in args.workdirs:
        runs[run.name], sheets = measure(run, args.count, sampling)
        print(f"{run.name}\n", *(table.markdown() for table in style_tables(runs[run.name])))
        if args.pictures and run == args.workdirs[0]:
            for caption, sheet in sheets.items():
                name = next(SHEETS[start] for start in SHEETS if caption.startswith(start))
                large = Image.fromarray(sheet.repeat(2, axis=0).repeat(2, axis=1))
                large.save(args.out / f"{args.name}_{name}.png")
    report.write(args.out / f"{args.name}_cpu.json", ("jax", "flax"), {"runs": runs})


if __name__ == "__main__":
    cli.run(main)
