"""Generate faces from masks:

    python -m sisma_jax.sample --workdir runs/demo --masks DIR --out DIR

A model with style conditioning also takes the style of reference faces, each with its mask: of one
face, of parts of several faces, or interpolated between two. Parts can take the shapes that they
have in other masks.
"""

import argparse
import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError, counted
from sisma_jax.common.files import check_output_folder, flush_all
from sisma_jax.common.progress import bar
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.image_files import save_png
from sisma_jax.data.label_maps import collect_masks, read_with_share, resize_nearest
from sisma_jax.data.label_values import Reading
from sisma_jax.data.mask_options import add_mask_options
from sisma_jax.flows import rectified
from sisma_jax.models.generators import draws_styles, learns_null_mask, model_config
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis import arguments, references, shape_options
from sisma_jax.synthesis.checks import check_request, default_steps
from sisma_jax.synthesis.options import STEPS, SamplingOptions, name_fields
from sisma_jax.synthesis.synthesizer import Synthesizer


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.sample",
        __doc__,
        "python -m sisma_jax.sample --workdir runs/demo --masks masks/ --out faces/ --per-mask 4",
    )
    parser.add_argument(
        "--workdir", type=cli.path, required=True, help="run folder (or export) of a trained model"
    )
    parser.add_argument(
        "--masks",
        type=cli.path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="label maps, or folders of them: PNG, BMP, TIFF or lossless WebP files of class ids "
        "or in the classes' colours",
    )
    parser.add_argument(
        "--out", type=cli.path, required=True, help="folder for the faces, new or empty"
    )
    parser.add_argument("--per-mask", type=int, default=1, help="faces per mask")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"solver steps (default: {STEPS}, or 1 for a model that draws in one pass)",
    )
    parser.add_argument(
        "--solver", choices=rectified.SOLVERS, default=SamplingOptions.solver, help="ODE solver"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=SamplingOptions.guidance,
        help="classifier-free guidance; 1 is the plain model; more follows the mask more closely",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="faces per batch")
    add_mask_options(parser, "the masks")
    parser.add_argument(
        "--allow-unlabelled",
        action="store_true",
        help="accept 255 (or mid grey) in masks, also in those of --reference, --part, --towards "
        "and --shape: the model decides what is there, and a reference gives no style there",
    )
    arguments.add_arguments(parser)
    references.add_arguments(parser)
    shape_options.add_arguments(parser)
    return parser.parse_args()


def read_masks(
    paths: list[Path],
    size: int,
    *,
    classes: ClassSet = CELEBAMASK,
    reading: Reading = Reading(),  # noqa: B008  a constant
) -> UInt8[np.ndarray, "n size size"]:
    """Read label maps and resize them to `size` (nearest).

    Prints how many were resized, and the share of pixels that took the nearest class colour.

    Raises:
      InputError: if a mask cannot be read as `reading` says, or is not square.
    """
    masks, resized, shares = [], Counter(), []
    for path in paths:
        labels, share = read_with_share(path, classes, reading)
        shares.append(share)
        height, width = labels.shape
        if height != width:
            raise InputError(f"mask {path} has {width}x{height} pixels: crop it to a square")
        if height != size:
            resized[height] += 1
            labels = resize_nearest(labels, size)
        masks.append(labels)
    for old, count in resized.items():
        what = f"{counted(count, 'mask')} of {old}x{old} pixels"
        print(f"note: resized {what} to {size}x{size} (nearest)")
    if any(shares):
        print(
            f"note: {np.mean(shares):.2%} of the pixels of {counted(len(paths), 'mask')} took the "
            "nearest class colour"
        )
    return np.stack(masks)


def main() -> None:
    args = parse_arguments()
    if args.per_mask < 1:
        raise InputError(f"--per-mask is {args.per_mask}: use at least 1")
    arguments.check_numbers(args)
    reading = Reading(args.class_order, args.allow_unlabelled, args.nearest_colour)
    run = RunFolder(args.workdir)
    config = run.config("sisma_jax.train")
    model, classes = model_config(config), run.classes()
    steps = default_steps(model) if args.steps is None and args.times is None else args.steps
    options = arguments.options_from(
        args,
        steps=steps,
        solver=args.solver,
        guidance=args.guidance,
        style_guidance=args.style_guidance,
    )
    with name_fields("--"):
        check_request(
            model,
            options,
            in_style=args.reference is not None or args.part is not None,
            null_mask=learns_null_mask(config),
            draws_styles=draws_styles(config),
        )
    arguments.check_guidance(args, [args.guidance, args.style_guidance], config)
    check_output_folder("--out", args.out)
    paths = collect_masks(args.masks)
    twice = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise InputError(f"two masks are named {twice[0]!r}: rename one, faces take their names")
    read = partial(read_masks, size=model.image_size, classes=classes, reading=reading)
    masks = read(paths)
    read_one = lambda path: read([path])[0]
    given, shares = shape_options.shapes_from(args, classes, read_one)
    asked = references.references_from(args, model.image_size, classes, read_one)

    synthesizer = Synthesizer.load(args.workdir, batch_size=args.batch_size)
    stems = [path.stem for path in paths]
    shapes = shape_options.masks_from(given, shares, synthesizer, masks, stems)
    styles = references.styles_of(asked, synthesizer)
    references.print_missing(synthesizer, styles[0], masks)
    if args.per_mask > 1 and not synthesizer.draws_styles:
        print(f"note: nothing is drawn from noise, so the {args.per_mask} faces per mask are equal")
    again = lambda x: np.repeat(x, args.per_mask, axis=0)
    repeated = [jax.tree.map(again, shaped) for shaped in shapes]
    with name_fields("--"):
        sets = [
            synthesizer.batches(shaped, options, seed=args.seed, style=style)
            for style in styles
            for shaped in repeated
        ]
    batches = itertools.chain.from_iterable(sets)
    kinds = [
        "".join(f"_{i}" for i, of in zip(pair, (styles, shapes), strict=True) if len(of) > 1)
        for pair in itertools.product(range(len(styles)), range(len(shapes)))
    ]
    names = [
        f"{stem}_{k}{kind}.png" for kind in kinds for stem in stems for k in range(args.per_mask)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(names)} faces with the weights of step {synthesizer.step} of {args.workdir}")
    count = len(stems) * args.per_mask
    memory = synthesizer.memory(count, options, style=styles[0], masks=shapes[0])
    print(
        f"batches of {memory['batch']}; on each device {memory['arguments'] / 2**20:.0f} MiB for "
        f"weights and a peak of {memory['temporary'] / 2**20:.0f} MiB while generating"
    )
    with bar(total=len(names), desc="faces", unit="face") as progress:
        done = 0
        for images in batches:
            for name, image in zip(names[done:], images, strict=False):
                save_png(Image.fromarray(image), args.out / name, flush=False)
            done += len(images)
            progress.update(len(images))
    flush_all()
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
