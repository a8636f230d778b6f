"""Existing pictures of any method: paired by name with a reference, and scored.

`sisma_jax.sample` names the faces of mask NAME `NAME_k`, or `NAME_k_j` when it interpolates styles;
the folders of a report contain `NAME_k`. A picture therefore belongs to the reference of the same
name. If there is none, it belongs to the reference with the longest name that is followed only by
such numbers in the picture's name. Names that are numbers match with different zero padding if that
is unambiguous.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import stem
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.label_maps import collect_masks, read_with_share
from sisma_jax.data.label_values import LENIENT, Reading
from sisma_jax.evaluation.evaluator import Evaluation, real_faces
from sisma_jax.evaluation.pictures import PictureFolder, Selection, SplitPictures, digest

NUMBER = re.compile("[0-9]+")
MOST_NUMBERS = 2
"""Largest number of suffixes: the number of the face, and the step of an interpolation."""
OF_PAIRS = frozenset({"ssim", "psnr_db"})
OF_MASKS = frozenset({"miou", "accuracy"})


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Indices of the pictures' counterparts."""

    indices: list[int]
    """Index by picture; empty if any picture has no counterpart."""
    reason: str = ""
    """If `index` is empty: what is missing, as "no ...", with an example name from each side."""


def pair(names: Sequence[str], others: Sequence[str]) -> Pairing:
    """Find the counterparts of `names` among the unique `others` (module docstring)."""
    names, others = (
        [unicodedata.normalize("NFC", one) for one in some] for some in (names, others)
    )
    places = {name: place for place, name in enumerate(others)}
    values = Counter(int(name) for name in others if NUMBER.fullmatch(name))
    numbers = {
        int(name): place
        for name, place in places.items()
        if NUMBER.fullmatch(name) and values[int(name)] == 1
    }

    def place_of(name: str) -> int | None:
        for _ in range(MOST_NUMBERS + 1):
            if name in places:
                return places[name]
            if NUMBER.fullmatch(name) and int(name) in numbers:
                return numbers[int(name)]
            name, _, number = name.rpartition("_")
            if not NUMBER.fullmatch(number):
                return None
        return None

    indices = [place_of(name) for name in names]
    if None not in indices:
        doubt = _ambiguity(names, others, indices)
        return Pairing([], doubt) if doubt else Pairing(indices)
    alone = [name for name, place in zip(names, indices, strict=True) if place is None]
    left = next((name for place, name in enumerate(others) if place not in indices), None)
    besides = "" if left is None else f", but {left!r}"
    return Pairing(
        [],
        f"no {alone[0]!r} ({len(alone)} of {len(names)} pictures have no counterpart){besides}",
    )


def _ambiguity(names: Sequence[str], others: Sequence[str], indices: Sequence[int]) -> str:
    """The reason if names can be read both as SEED_NAME and as NAME_k, otherwise "".

    The faces of a mask are numbered from 0. If the numbers in these names do not start at 0 and are
    also names of references, a picture may belong to either reference.
    """
    numbers: dict[int, set[str]] = {}
    for name, place in zip(names, indices, strict=True):
        base, _, number = name.rpartition("_")
        if base == others[place] and NUMBER.fullmatch(number):
            numbers.setdefault(place, set()).add(number)
    for place, counted in numbers.items():
        from_zero = {str(k) for k in range(len(counted))}
        if counted != from_zero and counted <= set(others):
            name = f"{others[place]}_{min(counted)}"
            return f"both {others[place]!r} and {min(counted)!r}, of which {name!r} may be"
    return ""


def check_asked(
    asked: frozenset[str],
    pictures: PictureFolder,
    others: Sequence[str] | None,
    *,
    has_masks: bool,
    masks_given: bool,
) -> None:
    """Check, before reading anything, that requested scores can be measured.

    Args:
      asked: names of `scoring.SCORES` that were requested by name.
      pictures: the pictures to score.
      others: names of the reference; None if only its statistics are available.
      has_masks: whether the reference has masks.
      masks_given: whether masks are given separately.

    Raises:
      InputError: if one cannot be measured.
    """
    where = f"the pictures of {pictures.path}"
    if others is None and asked & {"fd_parser", *OF_PAIRS}:
        metric = "fd" if "fd_parser" in asked else "ssim"
        raise InputError(
            f"--metrics asks for {metric}, but a reference of statistics has no pictures that "
            f"{where} could be compared with: give --data or a folder, or leave {metric} out"
        )
    if asked & OF_MASKS and not masks_given and not has_masks:
        raise InputError(
            f"--metrics asks for miou or acc, but there are no masks that {where} should follow: "
            "give --masks or --data, or leave them out"
        )
    reason = pair(pictures.names, others).reason if others is not None else ""
    needed = asked & (OF_PAIRS if masks_given else OF_PAIRS | OF_MASKS)
    if reason and needed:
        raise InputError(
            f"--metrics asks for {'ssim' if needed & OF_PAIRS else 'miou or acc'}, but {where} are "
            f"not named as the reference's are: it has {reason}; name a picture NAME or NAME_0 "
            "where the reference has NAME, or leave the metric out"
        )


def evaluate_pictures(
    evaluation: Evaluation,
    pictures: PictureFolder,
    name: str,
    *,
    masks: Path | None,
    reading: Reading = LENIENT,
) -> None:
    """Score a folder of pictures.

    Args:
      evaluation: with a reference or its statistics.
      pictures: the folder.
      name: name in the table.
      masks: folder of label maps whose names pair with the pictures'; a data set has its own.
      reading: options for reading them.

    Raises:
      InputError: if a picture has no mask in `masks`, or one that cannot be used.
    """
    reference, statistics = evaluation.reference, evaluation.statistics
    labels = pairs = None
    notes: list[str] = []
    if reference is not None:
        pairing = pair(pictures.names, reference.names)
        if pairing.indices:
            pairs = Selection(reference, pairing.indices)
            most = max(Counter(pairing.indices).values())
            if most > 1:
                notes.append(f"{name}: up to {most} pictures of one face")
            if isinstance(reference, SplitPictures):
                labels = reference.labels[pairing.indices]
        else:
            notes.append(f"{name}: the reference has {pairing.reason}: pictures are not paired")
            print(f"note: {notes[0]}, so there is no SSIM and PSNR, and no mask of a data set")
    elif statistics is not None and statistics.features is None:
        notes.append(
            f"{evaluation.data} does not record how its pictures were resized: assumed to be "
            f"{evaluation.resize}"
        )
    settings = {"folder": str(pictures.path)}
    if masks is not None:
        labels = read_masks(masks, pictures, evaluation.classes, reading)
        settings["masks"] = str(masks)
    with evaluation.scoring() as scorer:
        if isinstance(reference, SplitPictures):
            evaluation.put(real_faces(scorer, reference))
        row = scorer.row(
            name, "pictures", pictures, labels=labels, pairs=pairs, settings=settings, notes=notes
        )
        if masks is not None:  # scores with other masks are not merged
            row = dataclasses.replace(row, key=digest(row.key, labels))
        evaluation.put(row)


def read_masks(
    folder: Path, pictures: PictureFolder, classes: ClassSet, reading: Reading = LENIENT
) -> UInt8[np.ndarray, "n h w"]:
    """Read label maps of a folder, one for each picture (`pair`); prints the share of pixels that
    took the nearest class colour.

    Raises:
      InputError: if one is missing, cannot be used, or has another size.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder} is not a folder: give one of label maps")
    files = collect_masks([folder])
    stems = [stem(file) for file in files]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise InputError(f"{folder} holds two masks named {twice[0]!r}: keep one of them")
    pairing = pair(pictures.names, stems)
    if not pairing.indices:
        raise InputError(
            f"{folder} has {pairing.reason}: give a mask NAME for each picture NAME or NAME_0"
        )

    shares: list[float] = []

    def read(file: Path) -> UInt8[np.ndarray, "h w"]:
        labels, share = read_with_share(file, classes, reading)
        shares.append(share)
        if labels.shape != pictures.size:
            (height, width), (h, w) = labels.shape, pictures.size
            raise InputError(
                f"mask {file} has {width}x{height} pixels where its picture has {w}x{h}: bring "
                "them to one size"
            )
        return labels

    maps = {place: read(files[place]) for place in sorted(set(pairing.indices))}
    if any(shares):
        print(
            f"note: {np.mean(shares):.2%} of the pixels of {folder} took the nearest class colour"
        )
    return np.stack([maps[place] for place in pairing.indices])
