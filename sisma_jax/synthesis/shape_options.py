"""Shapes of parts from mask files, as the command line asks for them."""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.errors import InputError, naming
from sisma_jax.common.files import local_path
from sisma_jax.data.classes import ClassSet
from sisma_jax.synthesis.references import ReadMask, check_once
from sisma_jax.synthesis.shapes import check_share, transfer
from sisma_jax.synthesis.soft_masks import SoftMasks, classes_shown
from sisma_jax.synthesis.styles import chosen_classes
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


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes that one --shape gives."""

    words: str
    """The option as it was given."""
    mask: UInt8[np.ndarray, "1 H W"]
    names: list[str] | None
    """Names of classes; None for all."""


def shapes_from(
    args: argparse.Namespace, classes: ClassSet, read_mask: ReadMask
) -> tuple[list[Shapes], list[float]]:
    """Read the masks that the options ask for, and the shares. Needs no weights, so that what
    cannot be used is refused before they are read.

    Raises:
      InputError: if options do not go together, or a mask or a class does not fit.
    """
    if args.shape is None:
        if args.shape_share is not None:
            raise InputError("--shape-share goes with --shape, a mask that gives shapes: give one")
        return [], [1.0]
    shares = [1.0] if args.shape_share is None else args.shape_share
    for share in shares:
        check_share("--shape-share", share)
    shapes: list[Shapes] = []
    for words in args.shape:
        option = f"--shape {' '.join(words)}"
        if len(words) > 2:
            raise InputError(
                f"--shape has {len(words)} words: give comma-separated classes and a mask, or a "
                "mask alone"
            )
        mask, names = local_path(words[-1]), words[0].split(",")
        if len(words) == 1:
            if {*names} <= {*classes.names} and not mask.exists():
                raise InputError(f"{option} has classes, but no mask: write {option} MASK")
            names = None
        with naming(option):
            if names is not None:
                chosen_classes(classes, names)
            shapes.append(Shapes(option, read_mask(mask)[None], names))
    if len(shapes) > 1 and any(shape.names is None for shape in shapes):
        raise InputError(
            "--shape with a mask alone gives the shapes of all classes: leave the others out, or "
            "name its classes, too"
        )
    named = [name for shape in shapes for name in shape.names or ()]
    check_once("--shape", named, "shape", "mask")
    return shapes, shares


def masks_from(
    shapes: Sequence[Shapes],
    shares: Sequence[float],
    synthesizer: Synthesizer,
    masks: UInt8[np.ndarray, "n H W"],
    stems: Sequence[str],
) -> list[Masks]:
    """The masks with these shapes, one set for each share; [masks] if there are no shapes.

    Prints which of the masks, by the stems of their files, keep the shape of a part that they lack.

    Raises:
      InputError: if none of the masks has a class, or the shapes' mask lacks it.
    """
    if not shapes:
        return [masks]
    sets: list[Masks] = []
    for share in shares:
        shaped: Masks = masks
        for shape in shapes:
            with naming(shape.words):
                shaped = transfer(
                    synthesizer, shaped, shape.mask, shape.names, share, parts_of=masks
                )
        sets.append(shaped)
    shown, every = classes_shown(masks, len(synthesizer.classes)), synthesizer.classes.names
    for name in (name for shape in shapes for name in shape.names or ()):
        lacking = [
            stem for stem, k in zip(stems, shown[:, every.index(name)], strict=True) if not k
        ]
        if lacking:
            print(f"note: {', '.join(lacking)} without {name}, whose shape stays as it is there")
    return sets
