"""Reference faces from files, and the styles that the command line asks for."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError, naming
from sisma_jax.common.files import local_path
from sisma_jax.data.image_files import read_picture
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.styles import Style, chosen_classes
from sisma_jax.synthesis.synthesizer import Synthesizer

ReadMask = Callable[[Path], UInt8[np.ndarray, "H W"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that takes references."""
    group = parser.add_argument_group(
        "style of reference faces, for models with a style (docs/styles.md)"
    )
    add = group.add_argument
    pair = {"type": cli.path, "nargs": "+", "metavar": ("FACE", "MASK")}
    add("--reference", help="a face that gives the style of all classes, and its mask", **pair)
    add(
        "--part",
        action="append",
        nargs="+",
        metavar=("CLASSES", "FACE", "MASK"),
        help="comma-separated classes, then the face that gives their style and its mask; may be "
        "given several times",
    )
    add("--towards", help="a second face and its mask: interpolate from --reference to it", **pair)
    add("--interpolate", type=int, metavar="N", help="number of interpolated styles (default: 5)")
    add(
        "--interpolate-classes",
        metavar="CLASSES",
        help="classes to interpolate (default: all that both faces show)",
    )
    add(
        "--style-guidance",
        type=float,
        default=SamplingOptions.style_guidance,
        help="1 is the plain model; more follows the style more closely, and costs another pass",
    )


def styles_from(
    args: argparse.Namespace, synthesizer: Synthesizer, read_mask: ReadMask
) -> list[Style | None]:
    """The styles that the options ask for, in order; [None] if they ask for none.

    Raises:
      InputError: if options do not go together, or a reference does not fit the model.
    """
    options = {
        "--interpolate": args.interpolate, "--interpolate-classes": args.interpolate_classes,
    }  # fmt: skip
    if args.towards is None:
        for option, value in options.items():
            if value is not None:
                raise InputError(f"{option} goes with --towards, a second face: give one")
    elif args.reference is None:
        raise InputError("--towards needs a face to begin with: give --reference")
    if args.reference is None and args.part is None:
        return [None]

    read = lambda words, option: read_reference(synthesizer, words, option, read_mask)
    style = synthesizer.no_style()
    if args.reference is not None:
        style = read(args.reference, "--reference")
    for words in args.part or ():
        names = words[0].split(",")
        chosen_classes(synthesizer.classes, names)
        face = read([local_path(word) for word in words[1:]], f"--part {words[0]}")
        for name in names:
            if name in face.missing():
                print(f"note: {words[1]} shows no {name}, which is then {without_one(synthesizer)}")
        style = style.take(face, names)
    if args.towards is None:
        return [style]
    count = 5 if args.interpolate is None else args.interpolate
    if count < 2:
        raise InputError(f"--interpolate is {count}: use at least 2, the two ends")
    names = None if args.interpolate_classes is None else args.interpolate_classes.split(",")
    end = read(args.towards, "--towards")
    return [style.blend(end, float(share), names) for share in np.linspace(0, 1, count)]


def read_reference(
    synthesizer: Synthesizer, words: Sequence[Path], option: str, read_mask: ReadMask
) -> Style:
    """Encode the style of one face.

    Args:
      synthesizer: the model that encodes it.
      words: paths of the face and its mask.
      option: name of the option, for errors.
      read_mask: file -> label map of the model's size.

    Raises:
      InputError: if one is missing or does not fit the model.
    """
    if len(words) != 2:
        raise InputError(
            f"{option} has {len(words)} files: give the face and its mask, which says where its "
            "parts are"
        )
    face, mask = words
    image = read_face(face, synthesizer.config.image_size, option)
    return synthesizer.style(image[None], read_mask(mask)[None])


def read_face(path: Path, size: int, option: str) -> UInt8[np.ndarray, "size size 3"]:
    """Read a reference's picture.

    Raises:
      InputError: if it cannot be read or has another size; `option` is named.
    """
    with naming(option):
        picture = read_picture(path)
    if picture.size != (size, size):
        raise InputError(
            f"{option}: {path} has {picture.width}x{picture.height} pixels where the model makes "
            f"{size}x{size}: crop and resize it"
        )
    return np.asarray(picture)


def without_one(synthesizer: Synthesizer) -> str:
    """How a class is drawn that no reference shows."""
    if synthesizer.draws_styles:
        return "drawn from noise"
    return "drawn in the one style that this model has for parts without a reference"


def print_missing(
    synthesizer: Synthesizer, style: Style | None, masks: UInt8[np.ndarray, "n H W"]
) -> None:
    """Print which classes of the masks no reference gives a style for."""
    if style is None:
        return
    shown = set(np.unique(masks).tolist())
    names = style.classes.names
    missing = [name for name in style.missing() if names.index(name) in shown]
    if missing:
        print(f"note: no reference gives {', '.join(missing)}: {without_one(synthesizer)}")
