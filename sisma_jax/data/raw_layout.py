"""File names of a raw CelebAMask-HQ folder, and listing of the files in one.

    CelebA-HQ-img/{id}.jpg
    CelebAMask-HQ-mask-anno/{id // 2000}/{id:05d}_{part}.png      white on black; absent: no file

Copies with another padding or suffix (`.JPG`, `.bmp`) are read, too. Listing reads directory
entries only (the full set has some 400,000 files), once per folder.

Source: the release of Lee et al., "MaskGAN", CVPR 2020.
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_content, other_files, read_json
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.image_files import FORMAT_NAMES, FORMATS, LOSSLESS, LOSSLESS_NAMES

IMAGE_FOLDER = "CelebA-HQ-img"
MASK_FOLDER = "CelebAMask-HQ-mask-anno"
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
FACES_PER_MASK_FOLDER = 2000
SYNTHETIC_FILE = "synthetic.json"
"""Settings of a synthetic set, beside its folders."""
UNFINISHED_FILE = "synthetic.unfinished.json"
"""Name of the same file while the set is being written."""

_MISSPELT_MASK_FOLDER = "CelebAMaskHQ-mask-anno"
_LABEL_OF_PART = {part: label for label, part in enumerate(CLASSES) if label}
COUNT_TO_MAKE = 512
"""The number of synthetic faces that errors propose to make."""
_HOW_TO_MAKE_ONE = (
    f"`python -m sisma_jax.data.synthetic --out {{}} --count {COUNT_TO_MAKE} --size 64`"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Face:
    """File names of one face."""

    id: int
    image: str
    """Name in the image folder; "" if there is none."""
    parts: tuple[tuple[int, str], ...]
    """Class id and name, below the mask folder, of each part, in class order."""

    def image_path(self, root: Path) -> Path:
        return root / IMAGE_FOLDER / self.image


def image_path(root: Path, face: int) -> Path:
    """Path of a face's image, named as in the release."""
    return root / f"{IMAGE_FOLDER}/{face}.jpg"


def part_path(masks: Path, face: int, part: str) -> Path:
    """Path of one part of a face, named as in the release."""
    return masks / f"{face // FACES_PER_MASK_FOLDER}/{face:05d}_{part}.png"


def mask_folder(root: Path) -> Path:
    """The mask folder of a raw folder; some copies of the data set misspell its name."""
    misspelt = root / _MISSPELT_MASK_FOLDER
    return misspelt if misspelt.is_dir() else root / MASK_FOLDER


def check_root(root: Path) -> None:
    """Raises `InputError`, which says how to make a data set, if there is no folder, or an
    unfinished synthetic one."""
    if root.is_file():
        raise InputError(f"{root} is a file: name the folder of a data set")
    if not root.is_dir():
        raise InputError(
            f"{root} is not a folder: name a raw CelebAMask-HQ folder, or make one with "
            f"{_HOW_TO_MAKE_ONE.format(shlex.quote(str(root)))}"
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
    """Raise InputError for a file that does not belong in the folder; `face` is ignored."""
    raise InputError(message)


def list_images(root: Path, report: Callable[[str, int | None], None] = refuse) -> dict[int, str]:
    """Names of all images by id; misnamed files and duplicate ids go to `report`.

    Raises:
      InputError: there is no image folder or no image in it, or a file is misnamed.
    """
    folder = root / IMAGE_FOLDER
    images: dict[int, str] = {}
    twice: set[int] = set()
    others = []
    for entry in _scan(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() not in FORMATS:
            others.append(entry.name)
        elif not _is_number(stem):
            report(
                f"{entry.path} is not named after a face: images are {IMAGE_FOLDER}/{{id}}.jpg; "
                "rename or remove it",
                None,
            )
        elif int(stem) in images:
            first = images[int(stem)]
            report(f"{entry.path} and {first} are two images of one face: remove one", int(stem))
            twice.add(int(stem))
        else:
            images[int(stem)] = entry.name
    if not images:
        raise InputError(
            f"{folder} holds no {FORMAT_NAMES} file named {{id}}.jpg{_such_as(others)}: unpack the "
            f"data set there, or make one with {_HOW_TO_MAKE_ONE.format('DIR')}"
        )
    for face in twice:
        del images[face]
    return images


def list_parts(
    masks: Path, report: Callable[[str, int | None], None] = refuse
) -> dict[int, tuple[tuple[int, str], ...]]:
    """Parts of all faces that have a mask, by id, as in `Face.parts`.

    Misnamed, misplaced and duplicate files go to `report`.

    Raises:
      InputError: there is no mask folder or no part in it, or a file is misnamed or misplaced.
    """
    faces: dict[int, dict[int, str]] = {}
    others = []
    for subfolder in _scan(masks):
        if not (_is_number(subfolder.name) and subfolder.is_dir()):
            others.append(subfolder.name)
            continue
        for entry in _scan(Path(subfolder.path)):
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() not in LOSSLESS:
                others.append(f"{subfolder.name}/{entry.name}")
                continue
            number, _, part = stem.partition("_")
            label = _LABEL_OF_PART.get(part)
            face = int(number) if _is_number(number) else None
            if label is None or face is None:
                report(
                    f"{entry.path} is not named {{id:05d}}_{{part}}.png with one of the parts "
                    f"{', '.join(_LABEL_OF_PART)}: rename or remove it",
                    face,
                )
                continue
            if int(subfolder.name) != face // FACES_PER_MASK_FOLDER:
                report(
                    f"{entry.path} lies in the wrong folder: parts of face {face} belong in "
                    f"{masks / str(face // FACES_PER_MASK_FOLDER)}; move them there",
                    face,
                )
                continue
            parts = faces.setdefault(face, {})
            if label in parts:
                report(
                    f"{entry.path} and {parts[label]} are two masks of one part: remove one", face
                )
            parts[label] = f"{subfolder.name}/{entry.name}"
    if not faces:
        raise InputError(
            f"{masks} holds no part mask named {{id // {FACES_PER_MASK_FOLDER}}}/{{id:05d}}_"
            f"{{part}}.png ({LOSSLESS_NAMES}){_such_as(others)}: unpack the data set there, or "
            f"make one with {_HOW_TO_MAKE_ONE.format('DIR')}"
        )
    return {face: tuple(sorted(parts.items())) for face, parts in faces.items()}


def _is_number(text: str) -> bool:
    """Whether the text is an id: a number of at most nine digits."""
    return text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= 9


def _such_as(names: list[str]) -> str:
    """A clause that mentions further files, for a message."""
    return f", but {other_files(names)}" if names else ""


def check_pairs(root: Path, images: Collection[int], masked: Collection[int]) -> None:
    """Raises `InputError` unless the faces with an image are the faces with a mask."""
    without_mask = set(images).difference(masked)
    without_image = set(masked).difference(images)
    problems = []
    if without_mask:
        problems.append(f"{len(without_mask)} images without any mask (first: {min(without_mask)})")
    if without_image:
        problems.append(
            f"masks without an image for {len(without_image)} faces (first: {min(without_image)})"
        )
    if problems:
        raise InputError(
            f"{root} has {' and '.join(problems)}, of {len(images)} images and {len(masked)} "
            "masked faces in all: complete the folder, or remove what has no counterpart"
        )


def _scan(folder: Path) -> list[os.DirEntry]:
    """Entries of a folder that may belong to the data set."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_content(entry.name)]
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed ({error.strerror}): a raw CelebAMask-HQ folder holds "
            f"{IMAGE_FOLDER} and {MASK_FOLDER}; {_HOW_TO_MAKE_ONE.format('DIR')} makes one"
        ) from error
