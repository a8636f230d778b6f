"""Make a data set ready for training: `python -m sisma_jax.prepare --source DIR --out DIR`.

Reads a raw CelebAMask-HQ folder, the packed train/test folders of the synthesis papers, or any
folders images/ and labels/ with a list of classes, and writes ArrayRecord shards of losslessly
coded images and label maps, with dataset.json. The same command continues an interrupted run.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.data import layouts, preparation
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.label_values import Reading
from sisma_jax.data.mask_options import add_mask_options
from sisma_jax.data.raw import TEST_FROM


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.prepare",
        __doc__,
        "python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256",
    )
    add = parser.add_argument
    add("--source", type=cli.path, required=True, help="the data set's folder")
    add("--out", type=cli.path, required=True, help="folder for the shards, new or empty")
    add("--size", type=int, default=256, help="side in pixels")
    add(
        "--split",
        choices=layouts.SPLITS,
        default="sis",
        help="split of a raw folder: by id as in the synthesis papers, or CelebA's official one",
    )
    add(
        "--test-from",
        type=int,
        help="first test id, or position in folder pairs, where the source has no test split "
        f"(default: {TEST_FROM} in a raw folder that large, else the last tenth is held out)",
    )
    add(
        "--classes",
        type=cli.path,
        help="JSON list of classes (default: classes.json in the source)",
    )
    add_mask_options(parser, "label maps")
    add("--crop", action="store_true", help="crop the centre of images that are not square")
    add(
        "--workers",
        type=int,
        help="worker processes; any number gives the same result (default: one per core)",
    )
    add("--shard-size", type=int, default=1024, help="items per shard")
    add("--strict", action="store_true", help="stop at the first item that cannot be used")
    add("--allow-rejected", action="store_true", help="accept more than 1 %% unusable items")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # Raises for bad option values before the source is read.
    Reading(args.class_order, nearest_colour=args.nearest_colour)
    layout = layouts.survey(
        args.source, split=args.split, test_from=args.test_from, classes_file=args.classes
    )
    if layout.name == "raw":
        given = {
            "--classes": args.classes is not None,
            "--class-order": args.class_order != "canonical",
            "--nearest-colour": args.nearest_colour is not None,
            "--crop": args.crop,
        }
        for option in (option for option, is_given in given.items() if is_given):
            raise InputError(
                f"{option} is for folders of images and labels, but {args.source} is a raw "
                "CelebAMask-HQ folder: leave it out"
            )
    for note in layout.notes:
        print(f"note: {note}")
    reader = layouts.Reader(
        args.size, layout.classes, args.class_order, args.crop, args.nearest_colour
    )
    description = preparation.prepare(
        layout,
        reader,
        args.out,
        split_name=args.split if layout.name == "raw" else layout.name,
        shard_size=args.shard_size,
        workers=args.workers,
        strict=args.strict,
        allow_rejected=args.allow_rejected,
    )
    print_summary(args.out, description)


def print_summary(out: Path, description: dict[str, Any]) -> None:
    """Print what was written, notes on oddities in it, and how to train on it."""
    splits, classes = description["splits"], description["classes"]
    counts = ", ".join(f"{name} {len(split['ids'])}" for name, split in splits.items())
    print(f"{out}: {counts}, {len(classes)} classes, {description['size']} px")
    if description["rejected"]:
        print(f"{description['rejected']} rejected: see {out / preparation.REJECTED_FILE}")
    for sentence in preparation.oddities(description):
        print(f"note: {sentence}")
    if missing := preparation.missing_splits(description):
        remedy = (
            "look at what was rejected"
            if description["layout"] == "packed" or sum(len(s["ids"]) for s in splits.values()) < 2
            else "prepare another folder with another --test-from"
        )
        print(
            f"note: the {' and the '.join(missing)} split has no item, and training needs both: "
            f"{remedy}"
        )
        return
    words = [f"--config.data.path={shlex.quote(str(out))}"]
    words.append(f"--config.data.size={description['size']}")
    if len(classes) != len(CELEBAMASK):
        words.append(f"--config.model.num_classes={len(classes)}")
    print(f"train with {' '.join(words)}")


if __name__ == "__main__":
    cli.run(main)
