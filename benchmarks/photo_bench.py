"""Scores of trained models on the unseen masks of a data set, beside those of its real faces.

    python benchmarks/photo_bench.py --data data/celeba-64 --parser runs/parser --workdirs runs/a

For each run and each sampling: FD-parser, mIoU and accuracy (`sisma_jax.evaluate`), the variance
that the regions of the mask explain, the spread over the faces of one mask, colour coherence
(`sisma_jax.metrics.regions`), the distance to the nearest training face
(`sisma_jax.evaluation.nearest`), and seconds an image. The same scores of the real test faces, of
training faces and of the reconstructions by the run's autoencoder bound them. A model with a style
is also scored with the style of each mask's own face, with SSIM. Guidance is swept at --at-steps
steps, steps are swept at the guidances of --at-guidance. What a model cannot do is left out with a
note: guidance where no mask was dropped in training, more than one step of CA2-SIS.

Runs whose configs differ only by their seed are one model: means and standard deviations over
trainings. Generated faces and their scores are kept in --report, so that an interrupted command
continues. That folder holds pictures of the data set; the JSON file of --out holds figures only.

--sheet writes one picture of faces from masks that are not of the data set, in the first run's
sampling with --at-steps steps and the last guidance of --at-guidance. It is refused if a face is
nearer to a training face than all unseen test faces are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import report
from photo_scores import (
    Benchmark,
    Trained,
    combinations,
    models_of,
    over_trainings,
    samplings_of,
)
from photo_sheet import (
    SYNTHETIC,
    refuse_masks_of_data,
    refuse_near_faces,
    sheet_faces,
    sheet_masks,
    sheet_table,
)
from photo_tables import tables
from PIL import Image

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file, read_json
from sisma_jax.data.checksums import differ
from sisma_jax.data.contact_sheet import mask_sheet
from sisma_jax.data.image_files import save_png
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.thumbnails import SIDE, shrunk
from sisma_jax.devices.compilation_cache import keep_compiled_programs
from sisma_jax.evaluate import DEFAULT_RESIZE, comma_list
from sisma_jax.evaluation.evaluator import Evaluation
from sisma_jax.evaluation.generation import MOST_MASKS, MOST_SAMPLES, Sampling
from sisma_jax.evaluation.nearest import quantiles
from sisma_jax.evaluation.networks import DEFAULT_PARSER, OF_PARSER, load_networks
from sisma_jax.evaluation.report import ReportFolder
from sisma_jax.evaluation.splits import first_of, open_split
from sisma_jax.flows import rectified
from sisma_jax.models.generators import model_config
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.options import SamplingOptions, name_fields

SCORES = OF_PARSER | {"ssim", "psnr_db"}
"""The scores of `sisma_jax.evaluate` that are measured."""
SHEET_SEED = 7
"""A seed of procedural faces that no config trains on."""


def parse_arguments() -> argparse.Namespace:
    parser = report.parser("photo_bench.py", __doc__)
    add = parser.add_argument
    add("--data", help="data set that the runs were trained on (default: the first run's)")
    add("--parser", type=cli.path, default=DEFAULT_PARSER,
        help=f"face parser, as for sisma_jax.evaluate (default: {DEFAULT_PARSER})")  # fmt: skip
    add("--workdirs", type=cli.path, nargs="+", required=True, metavar="RUN",
        help="runs of sisma_jax.train of one image size")  # fmt: skip
    add("--steps", type=comma_list(int), default="4,12,25,50",
        help="numbers of solver steps (default: 4,12,25,50)")  # fmt: skip
    add("--guidance", type=comma_list(float), default="1,1.25,1.5,2",
        help="guidances (default: 1,1.25,1.5,2)")  # fmt: skip
    add("--at-steps", type=int,
        help="steps of the sweep of guidance (default: the second of --steps)")  # fmt: skip
    add("--at-guidance", type=comma_list(float),
        help="guidances of the sweep of steps (default: the first two of --guidance)")  # fmt: skip
    add("--solver", default=SamplingOptions.solver, choices=rectified.SOLVERS,
        help=f"(default: {SamplingOptions.solver})")  # fmt: skip
    add("--count", type=int, default=1000, help="test faces and masks (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--spread-masks", type=int, default=50, help="masks of the spread (default: 50)")
    add("--spread-samples", type=int, default=4, help="faces of each of them (default: 4)")
    add("--speed", action=argparse.BooleanOptionalAction, default=True,
        help="whether synthesis is timed, once for each model (default: it is)")  # fmt: skip
    add("--batch-size", type=int, default=16, help="faces per batch (default: 16)")
    add("--report", type=cli.path, default=Path("runs/photographs"), metavar="FOLDER",
        help="folder of generated faces and scores (default: runs/photographs)")  # fmt: skip
    add("--sheet", type=cli.path, metavar="FILE.png", help="picture of generated faces")
    add("--sheet-masks", default=SYNTHETIC, metavar="FOLDER",
        help=f"its masks; {SYNTHETIC!r}, the default, for those of procedural faces")  # fmt: skip
    add("--sheet-rows", type=int, default=6, help="masks on the sheet, at most (default: 6)")
    add("--sheet-columns", type=int, default=6, help="faces of each mask (default: 6)")
    add("--sheet-seed", type=int, default=SHEET_SEED,
        help=f"seed of procedural faces and of the noise (default: {SHEET_SEED})")  # fmt: skip
    add("--out", type=cli.path, default=report.RESULTS / "photographs_cpu.json", help="JSON file")
    args = parser.parse_args()
    report.check_positive(
        parser, args, "count", "batch_size", "sheet_rows", "sheet_columns", "spread_masks"
    )
    if not 2 <= args.count <= MOST_MASKS:
        parser.error(f"--count {args.count}: give 2 to {MOST_MASKS:,}")
    if not 2 <= args.spread_samples <= MOST_SAMPLES:
        parser.error(f"--spread-samples {args.spread_samples}: give 2 to {MOST_SAMPLES:,}")
    for name in ("seed", "sheet_seed"):
        if not 0 <= getattr(args, name) < 2**32:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: give 0..{2**32 - 1}")
    if args.at_steps is None:
        args.at_steps = args.steps[:2][-1]
    report.check_positive(parser, args, "at_steps")
    args.at_guidance = args.at_guidance or args.guidance[:2]
    return args


def load(workdirs: Sequence[Path], batch_size: int) -> list[Trained]:
    """Read the runs.

    Raises:
      InputError: if one cannot be read, two have the same name, or they differ in image size or
        classes.
    """
    runs: dict[str, RunFolder] = {}
    for workdir in workdirs:
        name = workdir.resolve().name
        if name in runs:
            raise InputError(
                f"--workdirs has two runs named {name}: name their folders differently"
            )
        runs[name] = RunFolder(workdir)
    configs = {name: run.config("sisma_jax.train") for name, run in runs.items()}
    first = next(iter(runs))
    for name, run in runs.items():
        sizes = [model_config(configs[one]).image_size for one in (first, name)]
        if sizes[0] != sizes[1] or run.classes() != runs[first].classes():
            raise InputError(
                f"{name} has {sizes[1]} pixels and {len(run.classes())} classes, {first} has "
                f"{sizes[0]} and {len(runs[first].classes())}, or other ones: give runs of one "
                "image size and one set of classes"
            )
    return [
        Trained(
            name=name, run=run, config=configs[name],
            synthesizer=Synthesizer.load(run.path, batch_size=batch_size),
        )
        for name, run in runs.items()
    ]  # fmt: skip


def check_training_data(run: RunFolder, train: Source) -> None:
    """Raises InputError if the run was trained on other data, to whose faces the distances of its
    samples would say nothing."""
    begun = read_json(run.data_file)
    if begun is None:
        print(f"note: {run.path} does not say what it was trained on; --data is taken for it")
    elif differ(begun["checksum"], train.checksum):
        raise InputError(
            f"{run.path} was trained on other data ({begun['checksum'][:8]}) than --data has "
            f"({train.checksum[:8]}), so the nearest training faces cannot be found: give --data "
            "the set that it was trained on"
        )


def main() -> None:
    args = parse_arguments()
    with name_fields("--"):
        samplings = [
            Sampling(
                options=SamplingOptions(steps=steps, guidance=guidance, solver=args.solver),
                seed=args.seed,
            )
            for steps, guidance in combinations(
                args.steps, args.guidance, args.at_steps, args.at_guidance
            )
        ]
    if args.sheet is not None:
        check_output_file("--sheet", args.sheet)
    check_output_file("--out", args.out)
    networks = load_networks(SCORES, None, args.parser, "alex")
    keep_compiled_programs()
    runs = load(args.workdirs, args.batch_size)
    models = models_of(runs)
    possible = {one.name: samplings_of(one, samplings, args.count) for one in runs}
    first = runs[0]
    size, classes, test_from = (
        first.synthesizer.config.image_size, first.run.classes(), first.config.data.test_from,
    )  # fmt: skip
    path = args.data or first.config.data.path
    if not path:
        raise InputError(f"{first.run.path} was trained on cached latents alone: give --data")
    open_fields = lambda split, *fields: open_split(
        path, size, split, test_from, classes=classes, fields=fields
    )
    train, labelled = open_fields("train", "image"), open_fields("train", "image", "labels")
    for trained in runs:
        check_training_data(trained.run, labelled)  # checksums of raw folders cover opened fields
    masks, on_sheet = None, None
    if args.sheet is not None:
        options = SamplingOptions(
            steps=args.at_steps, guidance=args.at_guidance[-1], solver=args.solver
        )
        first.synthesizer.check_options(options, None, args.sheet_columns)
        on_sheet = Sampling(options=options, seed=args.sheet_seed)
        masks = sheet_masks(args.sheet_masks, args.sheet_rows, args.sheet_seed, size, classes)
        splits = [open_fields(split, "labels") for split in ("train", "test")]
        refuse_masks_of_data(masks, splits, classes)
    benchmark = Benchmark(
        evaluation=Evaluation(
            report=ReportFolder(args.report),
            networks=networks.fitting(classes.names, size),
            scores=SCORES,
            resize=DEFAULT_RESIZE,
            classes=classes,
            data=path,
            reference=first_of(open_fields("test", "image", "labels"), args.count),
        ),
        train=train,
        spread_masks=args.spread_masks,
        spread_samples=args.spread_samples,
    )

    found = {
        trained.name: benchmark.of_run(
            trained, possible[trained.name], speed=args.speed and trained is model[0]
        )
        for model in models
        for trained in model
    }
    reference = benchmark.reference
    unseen = benchmark.distances(shrunk(reference.read(range(len(reference)))))
    results = {
        "measured": {
            "faces": len(reference), "training_faces": len(train), "image_size": size,
            "solver": args.solver, "noise_seed": args.seed,
            "spread_masks": min(args.spread_masks, len(reference)),
            "spread_samples": args.spread_samples, "nearest_side": SIDE,
        },
        "face_parser": {
            key: value
            for key, value in (benchmark.evaluation.networks.parser.quality or {}).items()
            if key in ("test_miou", "test_accuracy", "test_images", "class_iou")
        },
        "real": benchmark.real(labelled, unseen),
        "runs": {
            trained.name: trained.described() | found[trained.name]
            for trained in runs
        },
        "models": {
            model[0].name: over_trainings([found[one.name] for one in model])
            | {"runs": [one.name for one in model]}
            for model in models
        },
    }  # fmt: skip
    for table in tables(results):
        print(table.markdown())
    if masks is not None:
        faces = sheet_faces(first.synthesizer, masks, args.sheet_columns, on_sheet)
        near = benchmark.distances(shrunk(faces.reshape(-1, size, size, 3)))
        near = near.reshape(faces.shape[:2])
        print(sheet_table(near, unseen).markdown())
        results["sheet"] = {
            "run": first.name, "masks": len(masks), "faces_of_a_mask": args.sheet_columns,
            "settings": on_sheet.settings, "nearest": quantiles(near.ravel()),
        }  # fmt: skip
    report.write(args.out, ("jax", "jaxlib", "flax"), results)
    if masks is not None:
        refuse_near_faces(near, unseen)
        save_png(Image.fromarray(mask_sheet(masks, faces, classes=classes)), args.sheet)
        print(f"wrote {args.sheet}: {faces.shape[1]} faces of each of {len(masks)} masks, made by "
              f"{first.name} ({on_sheet.in_words})")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
