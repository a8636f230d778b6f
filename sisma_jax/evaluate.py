"""Score a trained model and report the results with their protocol.

    python -m sisma_jax.evaluate --workdir runs/demo --data data/synthetic --out report
    python -m sisma_jax.evaluate --images others/ --data data/synthetic --out report

The first form makes faces for the masks of the test split and scores them; the second scores
existing pictures, also against a plain folder (`--reference`). Both add rows to the table in
`--out`: report.json, report.md and report.html. The same command continues an interrupted run;
finished faces and measurements are kept.
"""

import argparse
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.commands import STYLES_PAGE
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file, why_unwritable
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.label_values import Reading
from sisma_jax.data.mask_noise import KINDS
from sisma_jax.data.mask_options import add_mask_options
from sisma_jax.data.raw import TEST_FROM
from sisma_jax.devices.compilation_cache import keep_compiled_programs
from sisma_jax.evaluation.evaluator import (
    Diversity,
    Evaluation,
    evaluate_run,
)
from sisma_jax.evaluation.foreign import check_asked, evaluate_pictures
from sisma_jax.evaluation.generation import MOST_MASKS, MOST_SAMPLES, Sampling
from sisma_jax.evaluation.networks import (
    BACKBONES,
    DEFAULT_PARSER,
    DEFAULT_WEIGHTS,
    OF_PARSER,
    check_weight_folder,
    load_networks,
)
from sisma_jax.evaluation.noisy_masks import STRENGTHS, noises_of
from sisma_jax.evaluation.pictures import PictureFolder
from sisma_jax.evaluation.report import ReportFolder
from sisma_jax.evaluation.splits import first_of, open_split
from sisma_jax.flows import rectified
from sisma_jax.metrics.frechet import Statistics, load_statistics
from sisma_jax.models.face_parser import load_parser
from sisma_jax.models.generators import draws_styles, generator, learns_null_mask, model_config
from sisma_jax.models.judges.inception import SCALINGS
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis import arguments
from sisma_jax.synthesis.arguments import FURTHER_OPTIONS
from sisma_jax.synthesis.checks import check_mask_guidance, check_sampling, default_steps
from sisma_jax.synthesis.options import STEPS, SamplingOptions, name_fields
from sisma_jax.synthesis.synthesizer import Synthesizer

METRICS = {
    "fid": ("fid",),
    "fd": ("fd_parser",),
    "lpips": ("lpips_diversity",),
    "miou": ("miou",),
    "acc": ("accuracy",),
    "ssim": ("ssim", "psnr_db"),
    "style": (),
    "speed": (),
    "peers": (),
}
"""The scores that each name on the command line stands for."""
DEFAULT_METRICS = "fid,fd,lpips,miou,acc,ssim,style,speed"
DEFAULT_RESIZE = "tf1"
STATISTICS = ".npz"
OF_RUNS = (
    "steps", "guidance", "style_guidance", "solver", *FURTHER_OPTIONS, "seed", "diversity_masks",
    "diversity_samples", "batch_size", "lpips_network", "mask_noise", "noise_strengths",
)  # fmt: skip
"""Options that do not apply to existing pictures."""
OF_DATA = ("count", "test_from")
"""Options that do not apply without a data set."""
T = TypeVar("T")


def comma_list(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An argparse type: comma-separated values."""

    def parse(text: str) -> list[T]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of numbers: separate them with commas"
            ) from None

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.evaluate",
        __doc__,
        "python -m sisma_jax.evaluate --workdir runs/demo --out report --steps 5,10,25 "
        "--guidance 1,1.5,2",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=cli.path, help="run folder (or export) of a trained model")
    what.add_argument("--images", type=cli.path, help="folder of pictures to score instead")
    add("--out", type=cli.path, required=True, help="report folder, created or extended")
    add("--data", help="data set whose test split is the reference (default: the run's)")
    add(
        "--reference",
        type=cli.path,
        help="with --images: folder of real pictures, or their Inception statistics (.npz), in "
        "place of a data set",
    )
    add("--masks", type=cli.path, help="with --reference: label maps, named like the images")
    add_mask_options(parser, "--masks")
    add(
        "--classes",
        type=cli.path,
        help="with --masks: their classes.json (default: CelebAMask-HQ's)",
    )
    add("--name", help="name of the model or images in the table (default: the folder's name)")
    add(
        "--metrics",
        type=comma_list(str),
        help=f"some of {', '.join(METRICS)}; style needs a model with style conditioning, peers "
        "times an attention twin of SISMA, SCA-DM, CA2-SIS and an SDM-shaped U-Net; a named metric "
        "must be measurable "
        f"(default: those of {DEFAULT_METRICS} that are)",
    )
    add("--count", type=int, default=2000, help="test faces and masks; one sample per mask")
    add("--steps", type=comma_list(int),
        help=f"solver steps, one or several (default: {STEPS})")  # fmt: skip
    add("--guidance", type=comma_list(float), default=str(SamplingOptions.guidance),
        help="guidance, one or several")  # fmt: skip
    add("--style-guidance", type=float, default=SamplingOptions.style_guidance,
        help="style guidance of faces with references")  # fmt: skip
    add(
        "--solver",
        type=comma_list(str),
        default=SamplingOptions.solver,
        help=f"one or several of {', '.join(rectified.SOLVERS)}",
    )
    arguments.add_arguments(parser)
    add(
        "--mask-noise",
        type=comma_list(str),
        metavar="NOISE",
        help=f"also score faces of noisy masks against the clean ones: {', '.join(KINDS)}, one or "
        "several; + joins those that act together (jitter,salt,jitter+salt)",
    )
    add("--noise-strengths", type=comma_list(float),
        help="with --mask-noise: strengths from 0 to 1, besides 0 (default: "
        f"{','.join(f'{x:g}' for x in STRENGTHS)})")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--diversity-masks", type=int, default=200, help="masks for LPIPS diversity")
    add("--diversity-samples", type=int, default=10, help="samples per mask for LPIPS diversity")
    add(
        "--parser",
        type=cli.path,
        help="face parser: a run of sisma_jax.train_parser, or published weights (.safetensors) "
        f"(default: {DEFAULT_PARSER} where it exists)",
    )
    add(
        "--weights",
        type=cli.path,
        help=f"folder of published weights (default: {DEFAULT_WEIGHTS} where it exists)",
    )
    add("--lpips-network", choices=BACKBONES, default="alex", help="backbone of LPIPS")
    add(
        "--fid-resize",
        choices=SCALINGS,
        help="how Inception's inputs are resized; half_pixel is pytorch-fid's (default: "
        f"{DEFAULT_RESIZE}; required for statistics that do not record theirs)",
    )
    add(
        "--save-statistics",
        type=cli.path,
        metavar="FILE.npz",
        help="save the Inception statistics of the reference",
    )
    add("--test-from", type=int, help=f"raw data: first id of the test split (default: the run's, "
        f"or {TEST_FROM})")  # fmt: skip
    add("--batch-size", type=int, default=16, help="faces per batch, over all devices")
    args = parser.parse_args()
    if args.images is not None:
        _refuse_options_of_runs(parser, args)
    args.asked = frozenset(args.metrics or ())
    args.metrics = args.metrics or DEFAULT_METRICS.split(",")
    return args


def _refuse_options_of_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raises InputError for options and metrics that need a model."""
    defaults = parser.parse_args(["--images", ".", "--out", "."])
    for name in OF_RUNS if args.data is not None else (*OF_RUNS, *OF_DATA):
        if getattr(args, name) != getattr(defaults, name):
            option = f"--{name.replace('_', '-')}"
            whose = "--data" if name in OF_DATA else "--workdir"
            raise InputError(f"{option} goes with {whose}, not with these images: leave it out")
    asked = set(args.metrics or ()) & {"lpips", "style", "speed", "peers"}
    if asked:
        raise InputError(f"metric {min(asked)!r} needs a model, not --images: leave it out")


def wanted_scores(names: Collection[str]) -> frozenset[str]:
    """The scores of metrics `names`; raises InputError if a name is not in METRICS."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"metric {name!r} is unknown: use some of {', '.join(METRICS)}")
    return frozenset(score for name in names for score in METRICS[name])


def check_arguments(args: argparse.Namespace) -> None:
    """Raises InputError for values out of range and options that do not go together."""
    for name, most in (("count", MOST_MASKS), ("diversity_samples", MOST_SAMPLES)):
        value = getattr(args, name)
        if not 2 <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} is {value}: use 2 to {most:,}")
    if args.diversity_masks < 1:
        raise InputError(f"--diversity-masks is {args.diversity_masks}: use at least 1")
    samplings_of(args)
    if (
        noises_of(args.mask_noise, args.noise_strengths)
        and not wanted_scores(args.metrics) & OF_PARSER
    ):
        raise InputError(
            "--mask-noise is scored by a face parser, but --metrics has none of its scores: add "
            "miou, acc or fd, or leave --mask-noise out"
        )
    with name_fields("--"):
        SamplingOptions(style_guidance=args.style_guidance)
    arguments.check_numbers(args)
    only_of_images = {
        "--reference": args.reference, "--masks": args.masks, "--classes": args.classes,
    }  # fmt: skip
    for option, value in only_of_images.items():
        if args.workdir is not None and value is not None:
            raise InputError(f"{option} goes with --images, not with --workdir: leave it out")
    if args.images is not None and (args.data is None) == (args.reference is None):
        raise InputError("--images needs a reference: give either --data or --reference")
    if args.classes is not None and args.masks is None:
        raise InputError("--classes goes with --masks: leave it out")
    of_masks = {"--class-order": args.class_order, "--nearest-colour": args.nearest_colour}
    for option, value in of_masks.items():
        if value not in ("canonical", None) and args.masks is None:
            raise InputError(f"{option} {value} goes with --masks: leave it out")
    reading_of(args)
    real = args.reference
    if real is not None and not real.is_dir() and real.suffix.lower() != STATISTICS:
        raise InputError(
            f"--reference {real} is neither a folder nor a {STATISTICS} file: give a folder of "
            f"real pictures, or their Inception statistics as {STATISTICS} (`mu` and `sigma`, as "
            "pytorch-fid writes them)"
        )
    if args.save_statistics is not None and args.save_statistics.suffix.lower() != STATISTICS:
        raise InputError(
            f"--save-statistics {args.save_statistics} writes a {STATISTICS} file: name it so"
        )
    if args.save_statistics is not None:
        check_output_file("--save-statistics", args.save_statistics)
    if args.masks is not None and args.reference is None:
        raise InputError("--masks goes with --reference; a data set has its own: leave it out")
    check_weight_folder(args.weights)
    if args.parser is not None and not args.parser.exists():
        load_parser(args.parser)  # raises
    if args.masks is not None and not args.masks.is_dir():
        raise InputError(f"--masks {args.masks} is not a folder: give one of label maps")
    if (reason := why_unwritable(args.out)) is not None:
        raise InputError(f"--out {args.out} cannot be written ({reason}): name another folder")


def training_faces(data: ConfigDict, size: int, classes: ClassSet) -> Source | None:
    """The images that a run was trained on (whatever --data is), or None if they are gone."""
    try:
        return open_split(
            data.path, size, "train", data.test_from, classes=classes, fields=("image",)
        )
    except InputError as error:
        print(f"note: no comparison with the run's training faces, which cannot be read ({error})")
        return None


def main() -> None:
    args = parse_arguments()
    check_arguments(args)
    scores, asked = wanted_scores(args.metrics), wanted_scores(args.asked)
    if args.images is not None:
        scores -= {"lpips_diversity"}  # it needs several samples of a mask
    keep_compiled_programs()

    def evaluation(classes: ClassSet, size: int | None, **about: Any) -> Evaluation:
        # Called after data and pictures are checked, since it may take long.
        networks = load_networks(scores, args.weights, args.parser, args.lpips_network)
        networks.check_asked(asked)
        fitting = networks.fitting(classes.names, size)
        fitting.check_asked(asked)
        if args.mask_noise and fitting.parser is None:
            raise InputError(
                f"--mask-noise needs a face parser. {fitting.missing['miou']}; or leave "
                "--mask-noise out"
            )
        return Evaluation(
            report=ReportFolder(args.out),
            networks=fitting,
            classes=classes,
            scores=scores,
            resize=args.fid_resize or DEFAULT_RESIZE,
            save_statistics=args.save_statistics,
            **about,
        )

    if args.workdir is not None:
        _evaluate_run(args, evaluation)
    else:
        _evaluate_images(args, evaluation)


def _evaluate_run(args: argparse.Namespace, evaluation: Callable[..., Evaluation]) -> None:
    config = RunFolder(args.workdir).config("sisma_jax.train")
    model = model_config(config)
    one_pass = generator(model).one_pass
    samplings = samplings_of(args, default_steps(model), one_pass=one_pass)
    with name_fields("--"):
        for sampling in samplings:
            options = sampling.options
            check_sampling(model, replace(options, style_guidance=args.style_guidance))
            check_mask_guidance(options, learns_null_mask(config))
    arguments.check_guidance(args, [*args.guidance, args.style_guidance], config)
    has_style = generator(model).has_style
    if "style" in args.asked and not has_style:
        raise InputError(
            f"--metrics asks for style, but the model in {args.workdir} has none: leave it out",
            page=STYLES_PAGE,
        )
    if args.style_guidance != 1 and not (has_style and "style" in args.metrics):
        raise InputError(
            f"--style-guidance is {args.style_guidance}, but no face has a reference style: leave "
            "it out, or use a model with style conditioning and the metric 'style'"
        )
    if not draws_styles(config) and "style" not in args.metrics:
        raise InputError(
            f"the {generator(model).name} in {args.workdir} draws faces in the style of references "
            "only: add style to --metrics"
        )
    path = args.data or config.data.path
    if not path:
        raise InputError(f"{args.workdir} was trained on cached latents alone: give --data")
    test_from = config.data.test_from if args.test_from is None else args.test_from
    size, classes = model.image_size, RunFolder(args.workdir).classes()
    test = open_split(path, size, "test", test_from, classes=classes)
    evaluate_run(
        evaluation(classes, size, reference=first_of(test, args.count), data=path),
        Synthesizer.load(args.workdir, batch_size=args.batch_size),
        training_faces(config.data, size, classes),
        name=args.name or args.workdir.resolve().name,
        samplings=samplings,
        diversity=Diversity(masks=args.diversity_masks, samples=args.diversity_samples),
        speed="speed" in args.metrics,
        peers="peers" in args.metrics,
        style="style" in args.metrics,
        style_guidance=args.style_guidance,
        noises=noises_of(args.mask_noise, args.noise_strengths),
    )


def _evaluate_images(args: argparse.Namespace, evaluation: Callable[..., Evaluation]) -> None:
    pictures = PictureFolder(args.images)
    name = args.name or args.images.resolve().name
    height, width = pictures.size
    check = partial(
        check_asked, wanted_scores(args.asked), pictures, masks_given=args.masks is not None
    )
    about: dict[str, Any] = {"classes": CELEBAMASK, "size": height if height == width else None}
    if args.classes is not None:
        about["classes"] = ClassSet.read(args.classes)
    if args.data is not None:
        if height != width:
            raise InputError(
                f"the pictures of {args.images} have {width}x{height} pixels: crop them to squares"
            )
        test_from = TEST_FROM if args.test_from is None else args.test_from
        source = open_split(args.data, height, "test", test_from)
        check([str(id) for id in source.ids[: args.count]], has_masks=True)
        about |= {
            "reference": first_of(source, args.count),
            "classes": source.classes,
            "data": args.data,
        }
    elif not args.reference.is_dir():
        check(None, has_masks=False)
        about |= {"statistics": reference_statistics(args), "data": str(args.reference)}
    else:
        reference = PictureFolder(args.reference)
        if reference.size != pictures.size:
            (a, b), (c, d) = pictures.size, reference.size
            raise InputError(
                f"the pictures of {args.images} have {b}x{a} pixels, those of {args.reference} "
                f"{d}x{c}: bring them to one size"
            )
        check(reference.names, has_masks=False)
        about |= {"reference": reference, "data": str(args.reference)}
    evaluate_pictures(
        evaluation(**about), pictures, name, masks=args.masks, reading=reading_of(args)
    )


def samplings_of(
    args: argparse.Namespace, steps: int = STEPS, *, one_pass: bool = False
) -> list[Sampling]:
    """Every combination of --solver, --guidance and --steps, without a style.

    Args:
      args: the options.
      steps: the number of steps where neither it nor times are asked for.
      one_pass: whether the model draws in one pass.

    Raises:
      InputError: if a value is out of range.
    """
    options = [
        arguments.options_from(args, steps=number, solver=solver, guidance=guidance)
        for solver in args.solver
        for guidance in args.guidance
        for number in args.steps or [None if args.times else steps]
    ]
    return [Sampling(options=one, seed=args.seed, one_pass=one_pass) for one in options]


def reading_of(args: argparse.Namespace) -> Reading:
    """How --masks are read; raises InputError for values out of range."""
    return Reading(args.class_order, True, args.nearest_colour)


def reference_statistics(args: argparse.Namespace) -> Statistics:
    """Read --reference.

    Raises:
      InputError: if neither the file nor --fid-resize says how its pictures were resized.
    """
    statistics = load_statistics(args.reference)
    if "fid" in args.metrics and statistics.features is None and args.fid_resize is None:
        raise InputError(
            f"{args.reference} does not say how its pictures were resized, which changes FID: give "
            "--fid-resize half_pixel for pytorch-fid's own files, tf1 for those of the original "
            "TensorFlow code, and for an older file of --save-statistics what it was saved with "
            "(tf1 unless said otherwise)"
        )
    return statistics


if __name__ == "__main__":
    cli.run(main)
