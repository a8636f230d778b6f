"""Shapes of parts from mask files, as the command line asks for them."""

import argparse
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.errors import InputError, naming
from sisma_jax.common.files import local_path
from sisma_jax.synthesis.references import ReadMask
from sisma_jax.synthesis.shapes import check_share, transfer
from sisma_jax.synthesis.soft_masks import SoftMasks, classes_shown
from sisma_jax.synthesis.synthesizer import Synthesizer

Masks = UInt8[np.ndarray, "n H W"] | SoftMasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that takes shapes from other masks."""
    group = parser.add_argument_group("shapes of parts from other masks (docs/styles.md)")
    group.add_argument(
        "--shape",
        action="append",
        nargs="+",
        metavar=("CLASSES", "MASK"),
        help="comma-separated classes, then the mask that gives their shapes; may be given several "
        "times; a mask alone gives the shapes of all classes",
    )
    group.add_argument(
        "--shape-share",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="share of the shapes of --shape, from 0 (the masks' own) to 1 (the default); several "
        "shares make a face each",
    )


def masks_from(
    args: argparse.Namespace,
    synthesizer: Synthesizer,
    masks: UInt8[np.ndarray, "n H W"],
    stems: Sequence[str],
    read_mask: ReadMask,
) -> list[Masks]:
    """The masks that the options ask for, one set for each share; [masks] if they ask for none.

    Prints which of the masks, by the stems of their files, keep the shape of a part that they lack.

    Raises:
      InputError: if options do not go together, or a mask or a class does not fit.
    """
    if args.shape is None:
        if args.shape_share is not None:
            raise InputError("--shape-share goes with --shape, a mask that gives shapes: give one")
        return [masks]
    shares = [1.0] if args.shape_share is None else args.shape_share
    for share in shares:
        check_share("--shape-share", share)
    shapes: list[tuple[UInt8[np.ndarray, "1 H W"], list[str] | None]] = []
    for words in args.shape:
        if len(words) > 2:
            raise InputError(
                f"--shape has {len(words)} words: give comma-separated classes and a mask, or a "
                "mask alone"
            )
        names = None if len(words) == 1 else words[0].split(",")
        shapes.append((read_mask(local_path(words[-1]))[None], names))
    _check_once([names for _, names in shapes])
    sets: list[Masks] = []
    for share in shares:
        shaped: Masks = masks
        for (other, names), words in zip(shapes, args.shape, strict=True):
            with naming(f"--shape {' '.join(words)}"):
                shaped = transfer(synthesizer, shaped, other, names, share, parts_of=masks)
        sets.append(shaped)
    shown, every = classes_shown(masks, len(synthesizer.classes)), synthesizer.classes.names
    for name in {name: None for _, names in shapes for name in names or ()}:
        lacking = [
            stem for stem, k in zip(stems, shown[:, every.index(name)], strict=True) if not k
        ]
        if lacking:
            print(f"note: {', '.join(lacking)} without {name}, whose shape stays as it is there")
    return sets


def _check_once(named: Sequence[Sequence[str] | None]) -> None:
    """Raises InputError if two masks give the shape of one class."""
    if len(named) > 1 and None in named:
        raise InputError(
            "--shape with a mask alone gives the shapes of all classes: leave the others out, or "
            "name its classes, too"
        )
    seen: set[str] = set()
    for name in (name for names in named for name in names or ()):
        if name in seen:
            raise InputError(f"--shape has {name} twice: take its shape from one mask")
        seen.add(name)
