"""Where the files of a raw CelebAMask-HQ folder lie, and which of them there are.

    CelebA-HQ-img/{id}.jpg
    CelebAMask-HQ-mask-anno/{id // 2000}/{id:05d}_{part}.png      white on black; no file, no part

Listing reads directory entries only (the full set has some 400,000 files), once per folder.
Source: the release of Lee et al., "MaskGAN", CVPR 2020.
"""

import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

from sisma_jax.data.classes import CLASSES
from sisma_jax.errors import InputError
from sisma_jax.files import read_json

IMAGE_FOLDER = "CelebA-HQ-img"
MASK_FOLDER = "CelebAMask-HQ-mask-anno"
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
FACES_PER_MASK_FOLDER = 2000
SYNTHETIC_FILE = "synthetic.json"
"""Settings of a synthetic set, beside its folders."""
UNFINISHED_FILE = "synthetic.unfinished.json"
"""The same while it is being written."""

_MISSPELT_MASK_FOLDER = "CelebAMaskHQ-mask-anno"
_BIT_OF_PART = {part: 1 << label for label, part in enumerate(CLASSES) if label}
_HOW_TO_MAKE_ONE = "`python -m sisma_jax.data.synthetic --out {} --count 512 --size 64`"


def image_path(root: Path, face: int) -> Path:
    """File of a face's image."""
    return root / f"{IMAGE_FOLDER}/{face}.jpg"


def part_path(masks: Path, face: int, part: str) -> Path:
    """File of one part of a face, below the mask folder."""
    return masks / f"{face // FACES_PER_MASK_FOLDER}/{face:05d}_{part}.png"


def mask_folder(root: Path) -> Path:
    """The mask folder of a raw folder; some copies of the data set misspell its name."""
    misspelt = root / _MISSPELT_MASK_FOLDER
    return misspelt if misspelt.is_dir() else root / MASK_FOLDER


def check_root(root: Path) -> None:
    """Raises `InputError`, saying how to make a data set, where there is no folder at all or a
    synthetic one that is not finished."""
    if not root.is_dir():
        raise InputError(
            f"{root} is not a folder: name a raw CelebAMask-HQ folder, or make one with "
            f"{_HOW_TO_MAKE_ONE.format(root)}"
        )
    if (root / UNFINISHED_FILE).exists() and not (root / SYNTHETIC_FILE).exists():
        settings = read_json(root / UNFINISHED_FILE) or {}
        options = "".join(
            f" --{name.replace('_', '-')} {value}"
            for name, value in settings.items()
            if name != "version"
        )
        raise InputError(
            f"{root} is a synthetic data set that is not finished: finish it with `python -m "
            f"sisma_jax.data.synthetic --out {shlex.quote(str(root))}{options}`"
        )


def refuse(message: str, face: int | None) -> None:
    """What is done about a file that does not belong (but maybe is some face's): it is an error."""
    raise InputError(message)


def list_images(root: Path, report: Callable[[str, int | None], None] = refuse) -> set[int]:
    """Ids of all images; what is misnamed goes to `report`.

    Raises:
      InputError: there is no image folder or no image in it, or a file is misnamed.
    """
    folder = root / IMAGE_FOLDER
    images = set()
    for entry in _scan(folder):
        stem, dot, suffix = entry.name.rpartition(".")
        if dot + suffix != ".jpg":
            continue
        if not stem.isdecimal() or str(int(stem)) != stem:
            report(
                f"{entry.path} is not named after a face: images are {IMAGE_FOLDER}/{{id}}.jpg "
                "with an unpadded number; rename or remove it",
                int(stem) if stem.isdecimal() else None,
            )
            continue
        images.add(int(stem))
    if not images:
        raise InputError(
            f"{folder} holds no image named {{id}}.jpg: unpack the data set there, or make one "
            f"with {_HOW_TO_MAKE_ONE.format('DIR')}"
        )
    return images


def list_parts(masks: Path, report: Callable[[str, int | None], None] = refuse) -> dict[int, int]:
    """Ids of all faces with a mask, and which parts each has: bit `label` for class `label`.

    What is misnamed or misplaced goes to `report`.

    Raises:
      InputError: there is no mask folder or no part in it, or a file is misnamed or misplaced.
    """
    parts: dict[int, int] = {}
    for subfolder in _scan(masks):
        if not (subfolder.name.isdecimal() and subfolder.is_dir()):
            continue
        for entry in _scan(Path(subfolder.path)):
            stem, dot, suffix = entry.name.rpartition(".")
            if dot + suffix != ".png":
                continue
            number, _, part = stem.partition("_")
            bit = _BIT_OF_PART.get(part)
            if bit is None or len(number) != 5 or not number.isdecimal():
                report(
                    f"{entry.path} is not named {{id:05d}}_{{part}}.png with one of the parts "
                    f"{', '.join(_BIT_OF_PART)}: rename or remove it",
                    int(number) if number.isdecimal() else None,
                )
                continue
            face = int(number)
            if subfolder.name != str(face // FACES_PER_MASK_FOLDER):
                report(
                    f"{entry.path} lies in the wrong folder: parts of face {face} belong in "
                    f"{masks / str(face // FACES_PER_MASK_FOLDER)}; move them there",
                    face,
                )
                continue
            parts[face] = parts.get(face, 0) | bit
    if not parts:
        raise InputError(
            f"{masks} holds no part mask named {{id // {FACES_PER_MASK_FOLDER}}}/{{id:05d}}_"
            "{part}.png: unpack the data set there, or make one with "
            f"{_HOW_TO_MAKE_ONE.format('DIR')}"
        )
    return parts


def check_pairs(root: Path, images: Collection[int], masked: Collection[int]) -> None:
    """Raises `InputError` unless the faces with an image are the faces with a mask."""
    without_mask = set(images).difference(masked)
    without_image = set(masked).difference(images)
    found = []
    if without_mask:
        found.append(f"{len(without_mask)} images without any mask (first: {min(without_mask)})")
    if without_image:
        found.append(
            f"masks without an image for {len(without_image)} faces (first: {min(without_image)})"
        )
    if found:
        raise InputError(
            f"{root} has {' and '.join(found)}, of {len(images)} images and {len(masked)} masked "
            "faces in all: complete the folder, or remove what has no counterpart"
        )


def _scan(folder: Path) -> list[os.DirEntry]:
    """Entries of a folder without the hidden ones that operating systems leave behind."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed ({error.strerror}): a raw CelebAMask-HQ folder holds "
            f"{IMAGE_FOLDER} and {MASK_FOLDER}; {_HOW_TO_MAKE_ONE.format('DIR')} makes one"
        ) from error
