"""Data sets as people have them, behind one face: what there is to read, and how one item is read.

raw     `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno` (`raw_layout`)
pairs   `images` and `labels`, one label map per image, of the same name; or `train` and `test` with
        these two each, which is how the synthesis papers (SEAN, SDM, CA2-SIS) pack CelebAMask-HQ

Pairs may be of any classes, which a file `classes.json` then lists (`classes.ClassSet.from_json`).
Listing does not stop at what is wrong: it goes into `rejected`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sisma_jax.data import image_files, raw, raw_layout
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.label_maps import read_label_map, resize_nearest
from sisma_jax.errors import InputError

SPLITS = ("sis", "official")
"""Of the raw layout: that of the synthesis papers, by id, and the one of CelebA."""

CLASSES_FILE = "classes.json"

_FIRST_VAL, _FIRST_TEST = 162_771, 182_638
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An item, or a file, that cannot be used."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One item of a layout."""

    id: str
    place: tuple[Any, ...]
    """Where it lies; see `Reader.read`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A data set that was listed."""

    root: Path
    name: str
    classes: ClassSet
    splits: dict[str, list[Entry]]
    """Each in the order of ids."""
    rejected: list[Rejected]
    """What listing has found wrong."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """How one item is read; small, for it goes to every worker."""

    size: int
    """Pixels of a side."""
    classes: ClassSet
    class_order: str
    crop: bool
    """Of pairs that are no squares, keep the largest one in the middle."""

    def read(self, entry: Entry) -> dict[str, np.ndarray]:
        """ "image" uint8 (size, size, 3) and "labels" uint8 (size, size).

        Raises:
          InputError: a file is missing, damaged or does not fit the other.
        """
        kind, *place = entry.place
        return getattr(self, f"_read_{kind}")(*place)

    def _read_raw(self, root: Path, masks: Path, face: int, parts: int) -> dict[str, np.ndarray]:
        return {
            "image": raw.read_image(raw_layout.image_path(root, face), self.size),
            "labels": raw.read_parts(masks, face, parts, self.size),
        }

    def _read_pair(self, image_path: Path, label_path: Path) -> dict[str, np.ndarray]:
        labels = read_label_map(
            label_path, self.classes, class_order=self.class_order, allow_unlabelled=True
        )
        # The decoder's shortcut rounds sides, after which shapes could not be compared.
        draft = 2 * self.size if len(set(labels.shape)) == 1 else None
        image = image_files.load(image_path, _FORMATS[image_path.suffix.lower()], draft=draft)
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "RGB", "CMYK"):
            raise InputError(
                f"{image_path} is an image of mode {image.mode}: save it as 8-bit RGB without "
                "transparency"
            )
        (height, width), shape = labels.shape, (image.height, image.width)
        if height * shape[1] != width * shape[0]:
            raise InputError(
                f"{label_path} has {width} x {height} pixels, but its image {shape[1]} x "
                f"{shape[0]}: they do not have the same shape"
            )
        if height != width:
            if not self.crop:
                raise InputError(
                    f"{image_path} is no square ({shape[1]} x {shape[0]} pixels): crop it, or have "
                    "the middle taken with --crop"
                )
            image, labels = _middle(image, labels)
        if len(labels) != self.size:
            labels = resize_nearest(labels, self.size)
        return {"image": raw.fit(image_path, image, self.size), "labels": labels}


def _middle(
    image: Image.Image, labels: UInt8[np.ndarray, "h w"]
) -> tuple[Image.Image, UInt8[np.ndarray, "s s"]]:
    def box(width: int, height: int) -> tuple[int, int, int, int]:
        side = min(width, height)
        x, y = (width - side) // 2, (height - side) // 2
        return x, y, x + side, y + side

    x0, y0, x1, y1 = box(labels.shape[1], labels.shape[0])
    return image.crop(box(image.width, image.height)), labels[y0:y1, x0:x1]


def survey(
    root: Path, *, split: str = "sis", test_from: int, classes_file: Path | None = None
) -> Layout:
    """Find out what a folder holds.

    Args:
      root: the data set's folder.
      split: of a raw folder, one of SPLITS; pairs bring theirs in `train` and `test`.
      test_from: where the layout has no test split: the first id in it (raw, "sis"), or its place
        in the order of names (pairs).
      classes_file: JSON list of the classes of pairs; `classes.json` in `root` if it is there.

    Raises:
      InputError: it holds none of the layouts, or nothing at all.
    """
    raw_layout.check_root(root)
    if (root / raw_layout.IMAGE_FOLDER).is_dir():
        return _survey_raw(root, split, test_from)
    if split != "sis":
        raise InputError(
            f"split {split!r} is one of raw CelebAMask-HQ folders, but {root} holds no "
            f"{raw_layout.IMAGE_FOLDER}: leave --split out"
        )
    if classes_file is None and (root / CLASSES_FILE).exists():
        classes_file = root / CLASSES_FILE
    classes = CELEBAMASK if classes_file is None else ClassSet.read(classes_file)
    names = [name for name in ("train", "val", "test") if (root / name / "images").is_dir()]
    rejected: list[Rejected] = []
    if names:
        splits = {name: _list_pairs(root / name, rejected) for name in names}
        return Layout(root, "packed", classes, splits, rejected)
    if not (root / "images").is_dir():
        raise InputError(
            f"{root} holds no data set: neither {raw_layout.IMAGE_FOLDER} nor images and labels, "
            "nor train and test with images and labels in them"
        )
    pairs = _list_pairs(root, rejected)
    splits = {"train": pairs[:test_from], "test": pairs[test_from:]}
    return Layout(root, "pairs", classes, splits, rejected)


def _survey_raw(root: Path, split: str, test_from: int) -> Layout:
    masks = raw_layout.mask_folder(root)
    rejected: list[Rejected] = []
    # A stray file may be what its face lacks, so the face is left out with it.
    strays: set[int] = set()

    def report(message: str, face: int | None) -> None:
        rejected.append(Rejected("" if face is None else str(face), message))
        if face is not None:
            strays.add(face)

    images = raw_layout.list_images(root, report)
    parts = raw_layout.list_parts(masks, report)
    for face in sorted(images - parts.keys() - strays):
        rejected.append(Rejected(str(face), f"image {face} has no part mask in {masks}"))
    for face in sorted(parts.keys() - images - strays):
        rejected.append(Rejected(str(face), f"the masks of face {face} have no image in {root}"))
    faces = sorted(images & parts.keys() - strays)
    if split == "official":
        names, place = ("train", "val", "test"), _official_split(root)
        for face in faces:
            if face not in place:
                rejected.append(
                    Rejected(str(face), f"{root / raw_layout.MAPPING_FILE} has no line {face}")
                )
        faces = [face for face in faces if face in place]
    elif split == "sis":
        names, place = ("train", "test"), {face: int(face >= test_from) for face in faces}
    else:
        raise InputError(f"split {split!r} does not exist: choose {' or '.join(SPLITS)}")
    splits: dict[str, list[Entry]] = {name: [] for name in names}
    for face in faces:
        entry = Entry(str(face), ("raw", root, masks, face, parts[face]))
        splits[names[place[face]]].append(entry)
    return Layout(root, "raw", CELEBAMASK, splits, rejected)


def _official_split(root: Path) -> dict[int, int]:
    """0, 1 or 2 (train, val, test) for every id, by the place of its original in CelebA."""
    path = root / raw_layout.MAPPING_FILE
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: the official split needs this file of the data set, or choose "
            "--split sis"
        ) from error
    split = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0] == "idx":
            continue
        if len(words) < 2 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise InputError(f"{path} line {number} is not `idx orig_idx orig_file`: {line[:40]!r}")
        original = int(words[1])
        split[int(words[0])] = (original >= _FIRST_VAL) + (original >= _FIRST_TEST)
    return split


def _list_pairs(folder: Path, rejected: list[Rejected]) -> list[Entry]:
    images, images_twice = _by_stem(folder / "images", rejected)
    labels, labels_twice = _by_stem(folder / "labels", rejected)
    # Of two files of one name none is used: nobody knows which is right.
    for stem in images_twice | labels_twice:
        images.pop(stem, None)
        labels.pop(stem, None)
    for stem in sorted(images.keys() - labels.keys()):
        rejected.append(Rejected(stem, f"{images[stem]} has no label map in {folder / 'labels'}"))
    for stem in sorted(labels.keys() - images.keys()):
        rejected.append(Rejected(stem, f"{labels[stem]} has no image in {folder / 'images'}"))
    stems = sorted(
        images.keys() & labels.keys(), key=lambda s: (len(s), s) if s.isdecimal() else (0, s)
    )
    return [Entry(stem, ("pair", images[stem], labels[stem])) for stem in stems]


def _by_stem(folder: Path, rejected: list[Rejected]) -> tuple[dict[str, Path], set[str]]:
    """The files by their names without suffix, and the names that several have."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror})") from error
    found: dict[str, Path] = {}
    twice: set[str] = set()
    for path in paths:
        if path.suffix.lower() not in _FORMATS:
            rejected.append(Rejected(path.stem, f"{path} is no JPEG or PNG file by its name"))
        elif path.stem in found:
            reason = f"{path} and {found[path.stem].name} have one name: remove one"
            rejected.append(Rejected(path.stem, reason))
            twice.add(path.stem)
        else:
            found[path.stem] = path
    return found, twice
