"""Reference faces from files, and the styles that the command line asks for."""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError, counted, naming
from sisma_jax.common.files import local_path
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.image_files import read_picture
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.soft_masks import classes_shown
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


@dataclasses.dataclass(frozen=True)
class Reference:
    """A face and its mask."""

    path: Path
    """File of the face."""
    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]


@dataclasses.dataclass(frozen=True)
class References:
    """What the options ask for."""

    whole: Reference | None
    """The face that gives the style of all classes."""
    parts: tuple[tuple[tuple[str, ...], Reference], ...]
    """Names of classes, and the face that gives their style."""
    end: Reference | None
    """The face that styles are interpolated to."""
    count: int
    """Number of interpolated styles."""
    interpolated: tuple[str, ...] | None
    """Names of the classes that are interpolated; None for all."""

    def __bool__(self) -> bool:
        return self.whole is not None or bool(self.parts)


def references_from(
    args: argparse.Namespace, size: int, classes: ClassSet, read_mask: ReadMask
) -> References:
    """Read the references that the options ask for. Needs no weights, so that what cannot be used
    is refused before they are read.

    Prints which classes cannot be interpolated because one of the faces does not show them.

    Args:
      args: parsed options of `add_arguments`.
      size: side of the model's pictures.
      classes: the model's classes.
      read_mask: file -> label map of the model's size.

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
    count = 5 if args.interpolate is None else args.interpolate
    if count < 2:
        raise InputError(f"--interpolate is {count}: use at least 2, the two ends")
    names_of = [_names(f"--part {words[0]}", words[0], classes) for words in args.part or ()]
    check_once("--part", [name for names in names_of for name in names], "style", "face")
    interpolated = None
    if args.interpolate_classes is not None:
        interpolated = _names("--interpolate-classes", args.interpolate_classes, classes)

    def read(option: str, paths: Sequence[Path] | None) -> Reference | None:
        if paths is None:
            return None
        if len(paths) != 2:
            raise InputError(
                f"{option} has {counted(len(paths), 'file')}: give the face and its mask, which "
                "says where its parts are"
            )
        face, mask = paths
        image = read_face(face, size, option)
        with naming(option):
            return Reference(face, image, read_mask(mask))

    asked = References(
        whole=read("--reference", args.reference),
        parts=tuple(
            (names, read(f"--part {words[0]}", [local_path(word) for word in words[1:]]))
            for names, words in zip(names_of, args.part or (), strict=True)
        ),
        end=read("--towards", args.towards),
        count=count,
        interpolated=interpolated,
    )
    if asked.end is not None:
        _check_interpolated(asked, classes)
    return asked


def _names(option: str, text: str, classes: ClassSet) -> tuple[str, ...]:
    """Comma-separated names of classes; raises InputError, with this option, for any other."""
    names = tuple(text.split(","))
    with naming(option):
        chosen_classes(classes, names)
    return names


def check_once(option: str, names: Sequence[str], what: str, source: str) -> None:
    """Raises InputError, with this option, if a class gets its `what` from two of `source`."""
    for name, number in Counter(names).items():
        if number > 1:
            raise InputError(f"{option} has {name} twice: take its {what} from one {source}")


def _check_interpolated(asked: References, classes: ClassSet) -> None:
    """Print which of the classes to interpolate keep their style, since a face lacks them; raise
    InputError if all do."""
    shown = lambda face: classes_shown(face.labels[None], len(classes))[0]
    begins, ends = shown(asked.whole), shown(asked.end)
    for names, face in asked.parts:
        begins = np.where(chosen_classes(classes, names), shown(face), begins)
    given = {name: both for name, *both in zip(classes.names, begins, ends, strict=True)}
    names = classes.names if asked.interpolated is None else asked.interpolated
    if not any(all(given[name]) for name in names):
        which = "" if asked.interpolated is None else f"--interpolate-classes {','.join(names)}: "
        common = [name for name, both in given.items() if all(both)]
        remedy = f"name some of {', '.join(common)}" if common else "give other faces"
        raise InputError(
            f"{which}the faces of --reference and --towards have none of these classes in common, "
            f"so that all pictures would be equal: {remedy}"
        )
    for name in asked.interpolated or ():
        if not all(given[name]):
            option = "--towards" if given[name][0] else "--reference"
            print(f"note: the face of {option} shows no {name}, whose style is not interpolated")


def styles_of(asked: References, synthesizer: Synthesizer) -> list[Style | None]:
    """The styles that were asked for, in order; [None] if there are none.

    Prints which classes of --part a face does not show.
    """
    if not asked:
        return [None]
    encode = lambda face: synthesizer.style(face.image[None], face.labels[None])
    style = synthesizer.no_style() if asked.whole is None else encode(asked.whole)
    for names, reference in asked.parts:
        face = encode(reference)
        for name in names:
            if name in face.missing():
                shown = f"{reference.path} shows no {name}"
                print(f"note: {shown}, which is then {without_one(synthesizer)}")
        style = style.take(face, names)
    if asked.end is None:
        return [style]
    end = encode(asked.end)
    shares = np.linspace(0, 1, asked.count)
    return [style.blend(end, float(share), asked.interpolated) for share in shares]


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
