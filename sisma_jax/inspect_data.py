"""Show what a data set holds: `python -m sisma_jax.inspect_data --data DIR`.

Writes a sheet of images, label maps and overlays, and prints counts and class frequencies. With
`--odd FILE`, also lists the items that look wrong.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file, write_json
from sisma_jax.data import odd_items, prepared
from sisma_jax.data.contact_sheet import tile, with_legend
from sisma_jax.data.image_files import save_png
from sisma_jax.data.input_pipeline import Source, open_dataset
from sisma_jax.data.label_maps import colourise
from sisma_jax.data.preparation import oddities, oddities_of
from sisma_jax.data.prepared import is_prepared, read_description
from sisma_jax.data.raw import TEST_FROM
from sisma_jax.data.shards import file_checksum

COUNTED = 500
"""Items over which class frequencies are counted if the data set does not record them."""


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.inspect_data",
        __doc__,
        "python -m sisma_jax.inspect_data --data data/celeba-256 --out sheet.png",
    )
    add = parser.add_argument
    add("--data", required=True, help="a prepared data set (also at gs://), or a raw folder")
    add("--out", type=cli.path, default=Path("data_sheet.png"), help="the sheet, a PNG file")
    add("--split", default="train", help="split to show")
    add("--count", type=int, default=16, help="items on the sheet, evenly spread")
    add("--ids", nargs="+", metavar="ID", help="show these items of the split instead")
    add(
        "--odd",
        type=cli.path,
        metavar="FILE",
        help="examine every item of all splits, print what looks wrong, and write its ids as JSON",
    )
    add("--size", type=int, help="side in pixels; raw folders only (default: 256)")
    add("--test-from", type=int, default=TEST_FROM, help="first test id; raw folders only")
    add("--verify", action="store_true", help="compare the shards with their checksums")
    return parser.parse_args()


def sheet(source: Source, indices: list[int]) -> UInt8[np.ndarray, "H W 3"]:
    """Image, label map and overlay of every item, two items a row, with a legend."""
    rows: list[list[np.ndarray]] = []
    for place, index in enumerate(indices):
        item = source[index]
        colours = colourise(item["labels"], source.classes)
        overlay = (item["image"].astype(np.uint16) + colours) // 2
        if place % 2 == 0:
            rows.append([])
        rows[-1] += [item["image"], colours, overlay.astype(np.uint8)]
    return with_legend(tile(rows), source.classes)


def places(source: Source, ids: list[str]) -> list[int]:
    """Where the items of these ids are in the source."""
    by_id = {str(id): index for index, id in enumerate(source.ids)}
    for id in ids:
        if id not in by_id:
            raise InputError(f"--ids {id} is not in {source}: its first item is {source.ids[0]}")
    return [by_id[id] for id in ids]


def list_odd(sources: dict[str, Source], file: Path) -> None:
    """Print what looks wrong in these splits, and write it."""
    found = odd_items.examine(sources)
    counts = ", ".join(f"{split} {count}" for split, count in found["items"].items())
    print(f"items that look wrong, of {counts}:")
    for line in odd_items.summary(found):
        print(line)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    print(f"wrote {file}")


def frequencies(source: Source) -> tuple[dict[str, float], float, int]:
    """Pixel shares by class, the share of unlabelled pixels, and the number of items counted."""
    count = min(len(source), COUNTED)
    pixels = np.zeros(256, np.int64)
    for index in np.linspace(0, len(source) - 1, count).astype(int):
        pixels += np.bincount(source[int(index)]["labels"].reshape(-1), minlength=256)
    return *source.classes.shares(pixels), count


def verify(path: Path | str, description: dict) -> None:
    """Raises InputError at the first shard whose checksum differs."""
    folder = prepared.folder(path)
    for split in description["splits"].values():
        for shard in split["shards"]:
            file = folder / shard["file"]
            if file_checksum(file) != shard["sha256"]:
                raise InputError(
                    f"{file} has changed since it was written (its checksum differs): copy it "
                    "again, or prepare the data set again"
                )
    print("all shards match their checksums")


def main() -> None:
    args = parse_arguments()
    if args.count < 1:
        raise InputError(f"--count is {args.count}: give at least 1")
    if args.size is not None and args.size < 1:
        raise InputError(f"--size is {args.size}: give at least 1")
    check_output_file("--out", args.out)
    if args.odd is not None:
        check_output_file("--odd", args.odd)
        if args.odd.resolve() == args.out.resolve():
            raise InputError(f"--odd and --out are both {args.odd}: name two files")
    size = 256 if args.size is None else args.size
    if is_prepared(args.data):
        description = read_description(args.data)
        size = description["size"]
        if args.size not in (None, size):
            raise InputError(f"{args.data} was prepared at {size} pixels: leave --size out")
        counts = {name: len(split["ids"]) for name, split in description["splits"].items()}
        print(f"{args.data}: prepared from {description['layout']}, {size} px, {counts}")
        print(f"{description['rejected']} rejected when it was prepared")
        for sentence in oddities(description):
            print(f"note: {sentence}")
        if args.verify:
            verify(args.data, description)
        splits = [name for name, count in counts.items() if count]
        open_split = partial(open_dataset, args.data, size)
        source = open_split(split=args.split)
        chosen = description["splits"][args.split]
        shares, unlabelled = chosen["class_frequency"], chosen["unlabelled"]
        counted = len(source)
    else:
        if args.verify:
            raise InputError(f"{args.data} has no checksums to --verify: it is not prepared")
        splits = ["all"]
        open_split = partial(
            open_dataset,
            args.data,
            size,
            test_from=args.test_from,
            test_from_option="--test-from ",
        )
        source = open_split(split=args.split)
        print(f"{args.data}: raw, shown at {size} px, {args.split} {len(source)}")
        shares, unlabelled, counted = frequencies(source)
        for sentence in oddities_of(args.split, shares, unlabelled):
            print(f"note: {sentence} (over {counted} items)")
    spread = np.linspace(0, len(source) - 1, min(args.count, len(source))).astype(int).tolist()
    chosen_items = spread if args.ids is None else places(source, args.ids)
    print(f"share of pixels over {counted} items of split {args.split!r}:")
    for label, (name, share) in enumerate(shares.items()):
        print(f"  {label:3d} {name:20s} {share:8.3%}")
    print(f"      {'(unlabelled)':20s} {unlabelled:8.3%}")
    if args.odd is not None:
        list_odd({split: open_split(split=split) for split in splits}, args.odd)
    picture = sheet(source, chosen_items)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_png(Image.fromarray(picture), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
