"""Layouts of source data sets: listing their items, and reading one.

raw     `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno` (`raw_layout`)
pairs   `images` and `labels`, with one label map of the same name per image; or `train` and `test`
        (or `val`) that each contain these two, as the synthesis papers (SEAN, SDM, CA2-SIS) pack
        CelebAMask-HQ

Pairs may have any classes, listed in a file `classes.json` (`classes.ClassSet.from_json`). Listing
does not stop at unusable files, but collects them in `rejected`. `notes` states what it has decided
where the layout leaves something open.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_content, stem
from sisma_jax.data import image_files, raw, raw_layout
from sisma_jax.data.classes import CELEBAMASK, UNLABELLED, ClassSet
from sisma_jax.data.label_maps import read_with_share, resize_nearest
from sisma_jax.data.label_values import Reading

SPLITS = ("sis", "official")
"""Splits of the raw layout: by id as in the synthesis papers, and CelebA's own."""

CLASSES_FILE = "classes.json"

_FIRST_VAL, _FIRST_TEST = 162_771, 182_638

TEST_SHARE = 0.1
"""Share of items, taken from the end of the list, that become the test split if neither the data
set nor the user defines one."""
_HELD_OUT = ("test", "val", "valid", "validation")
"""Folders for the test split; the first that exists is used."""


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
    """Kind of item and location of its files; see `Reader.read`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A listed data set."""

    root: Path
    name: str
    classes: ClassSet
    splits: dict[str, list[Entry]]
    """Items by split, each in the order of ids."""
    rejected: list[Rejected]
    """Files and items that listing found unusable."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences on what listing decided."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads single items. It holds little data, since it is sent to every worker."""

    size: int
    """Side in pixels."""
    classes: ClassSet
    class_order: str
    crop: bool
    """Crop pairs that are not square to the largest central square."""
    nearest_colour: float | int | None = None
    """As in `label_values.Reading`."""

    def read(self, entry: Entry) -> dict[str, np.ndarray]:
        """ "image" uint8 (size, size, 3) and "labels" uint8 (size, size); for pairs also "share",
        the share of label pixels that took the nearest class colour.

        Raises:
          InputError: a file is missing, damaged or does not fit the other, or no pixel has a class.
        """
        kind, *place = entry.place
        return getattr(self, f"_read_{kind}")(*place)

    def _read_raw(self, root: Path, masks: Path, face: raw_layout.Face) -> dict[str, np.ndarray]:
        return {
            "image": raw.read_image(face.image_path(root), self.size),
            "labels": raw.read_parts(masks, face, self.size),
        }

    def _read_pair(self, image_path: Path, label_path: Path) -> dict[str, np.ndarray]:
        reading = Reading(self.class_order, True, self.nearest_colour)
        labels, share = read_with_share(label_path, self.classes, reading)
        if (labels == UNLABELLED).all():
            raise InputError(
                f"{label_path} has no pixel with a class: all are unlabelled ({UNLABELLED})"
            )
        # From the header, since the decoder rounds the sides when it reduces the resolution.
        (height, width), size = labels.shape, image_files.picture_size(image_path, draft=True)
        # Sides of a resized copy are rounded to whole pixels.
        if abs(height * size[0] - width * size[1]) >= max(width, size[0], height, size[1]):
            raise InputError(
                f"{label_path} has {width} x {height} pixels, but its image {size[0]} x "
                f"{size[1]}: they do not have the same shape, so crop or resize one of them"
            )
        if min(size) < self.size:
            raise InputError(
                f"{image_path} has {size[0]} x {size[1]} pixels, but images of at least "
                f"{self.size} x {self.size} are asked for: choose a smaller size or other images"
            )
        if height != width and not self.crop:
            raise InputError(
                f"{image_path} is not square ({size[0]} x {size[1]} pixels): crop it, or take "
                "its centre with --crop"
            )
        image = image_files.read_picture(image_path, draft=2 * self.size)
        if height != width:
            image, labels = _middle(image, labels)
        if len(labels) != self.size:
            labels = resize_nearest(labels, self.size)
        image = raw.fit(image_path, image, self.size)
        return {"image": image, "labels": labels, "share": np.float64(share)}


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
    root: Path,
    *,
    split: str = "sis",
    test_from: int | None = None,
    classes_file: Path | None = None,
) -> Layout:
    """Detect a folder's layout and list its items.

    Args:
      root: the data set's folder.
      split: split of a raw folder, one of SPLITS; pairs have theirs in `train` and `test` (or
        `val`).
      test_from: if the layout has no test split: its first id (raw, "sis"), or its position in the
        order of names (pairs). None: 28,000 in a raw folder that large, otherwise the last tenth is
        held out.
      classes_file: JSON list of the classes of pairs; `classes.json` in `root` if it is there.

    Raises:
      InputError: it has none of the layouts.
    """
    raw_layout.check_root(root)
    if (root / raw_layout.IMAGE_FOLDER).is_dir():
        return _survey_raw(root, split, test_from)
    if split != "sis":
        raise InputError(
            f"split {split!r} is one of raw CelebAMask-HQ folders, but {root} holds no "
            f"{raw_layout.IMAGE_FOLDER}: leave --split out"
        )
    rejected: list[Rejected] = []
    notes: list[str] = []
    if classes_file is None:
        places = (root / CLASSES_FILE, root / "train" / CLASSES_FILE)
        classes_file = next((place for place in places if place.exists()), None)
    if classes_file is None:
        notes.append(f"{root} has no {CLASSES_FILE}: labels are taken for CelebAMask-HQ's")
    classes = CELEBAMASK if classes_file is None else ClassSet.read(classes_file)
    folders = _split_folders(root, notes)
    if folders:
        splits = {name: _list_pairs(root, *both, rejected, notes) for name, both in folders.items()}
        held_out = next((name for name in _HELD_OUT if name in splits), None)
        if held_out not in (None, "test"):
            splits["test"] = splits.pop(held_out)
            notes.append(f"{root} has no test folder: {held_out} is the test split")
        if held_out is None:
            splits = _cut(splits["train"], test_from, notes)
        elif test_from is not None:
            notes.append(f"{root} has its own test split: --test-from is ignored")
        return Layout(root, "packed", classes, splits, rejected, notes)
    if not (root / "images").is_dir():
        raise InputError(
            f"{root} holds no data set: give a folder with {raw_layout.IMAGE_FOLDER} in it, or "
            "with images and labels, or with train and test that each hold images and labels"
        )
    pairs = _list_pairs(root, root / "images", root / "labels", rejected, notes)
    return Layout(root, "pairs", classes, _cut(pairs, test_from, notes), rejected, notes)


def _split_folders(root: Path, notes: list[str]) -> dict[str, tuple[Path, Path]]:
    """Images and labels of each split: train/images and train/labels, or images/train and
    labels/train; {} if there are no splits."""
    folders = {}
    for name in ("train", *_HELD_OUT):
        for images, labels in (
            (root / name / "images", root / name / "labels"),
            (root / "images" / name, root / "labels" / name),
        ):
            if images.is_dir() and not labels.is_dir() and name != "train":
                notes.append(f"{images} has no label maps, it lacks {labels}: it is left out")
            elif images.is_dir():
                folders[name] = (images, labels)
    return folders


def _cut(items: list[Entry], test_from: int | None, notes: list[str]) -> dict[str, list[Entry]]:
    """Split items at position `test_from` of the list."""
    if test_from is not None and test_from < 0:
        raise InputError(
            f"--test-from is {test_from}: give the place of the first test item, from 0"
        )
    if test_from is None and items:
        test_from = len(items) - _tenth(len(items))
        notes.append(_how_split(len(items) - test_from, len(items), test_from))
    return {"train": items[:test_from], "test": items[test_from:]}


def _tenth(count: int) -> int:
    """How many of `count` items are held out: at least one, but never all."""
    return min(max(1, round(TEST_SHARE * count)), count - 1) if count else 0


def _how_split(tests: int, count: int, test_from: int) -> str:
    return (
        f"the last {tests} of {count} items are the test split, since the data set has none of its "
        f"own; it starts at item {test_from}, and --test-from changes this"
    )


def _survey_raw(root: Path, split: str, test_from: int | None) -> Layout:
    masks = raw_layout.mask_folder(root)
    rejected: list[Rejected] = []
    notes: list[str] = []
    # A misnamed file may be the missing part of its face, so this face is left out as well.
    strays: set[int] = set()

    def report(message: str, face: int | None) -> None:
        rejected.append(Rejected("" if face is None else str(face), message))
        if face is not None:
            strays.add(face)

    images = raw_layout.list_images(root, report)
    parts = raw_layout.list_parts(masks, report)
    for face in sorted(images.keys() - parts.keys() - strays):
        rejected.append(Rejected(str(face), f"image {face} has no part mask in {masks}"))
    for face in sorted(parts.keys() - images.keys() - strays):
        rejected.append(Rejected(str(face), f"the masks of face {face} have no image in {root}"))
    faces = sorted(images.keys() & parts.keys() - strays)
    if split == "official":
        if test_from is not None:
            notes.append("the official split is CelebA's own: --test-from is ignored")
        names, place = ("train", "val", "test"), _official_split(root)
        for face in faces:
            if face not in place:
                rejected.append(
                    Rejected(str(face), f"{root / raw_layout.MAPPING_FILE} has no line {face}")
                )
        faces = [face for face in faces if face in place]
    elif split == "sis":
        if test_from is None:
            test_from = _first_test_id(faces, notes)
        names, place = ("train", "test"), {face: int(face >= test_from) for face in faces}
    else:
        raise InputError(f"split {split!r} does not exist: choose {' or '.join(SPLITS)}")
    splits: dict[str, list[Entry]] = {name: [] for name in names}
    for face in faces:
        files = raw_layout.Face(face, images[face], parts[face])
        splits[names[place[face]]].append(Entry(str(face), ("raw", root, masks, files)))
    return Layout(root, "raw", CELEBAMASK, splits, rejected, notes)


def _first_test_id(faces: list[int], notes: list[str]) -> int:
    """First id of the papers' test split, or of the last tenth of a smaller set."""
    if not faces or faces[0] < raw.TEST_FROM <= faces[-1]:
        return raw.TEST_FROM
    tests = _tenth(len(faces))
    test_from = faces[-tests] if tests else faces[-1] + 1
    notes.append(_how_split(tests, len(faces), test_from))
    return test_from


def _official_split(root: Path) -> dict[int, int]:
    """0, 1 or 2 (train, val, test) by id, from the index of its original in CelebA."""
    path = root / raw_layout.MAPPING_FILE
    try:
        content = path.read_bytes()
        lines = content.decode(json.detect_encoding(content)).splitlines()
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


def _list_pairs(
    root: Path,
    image_folder: Path,
    label_folder: Path,
    rejected: list[Rejected],
    notes: list[str],
) -> list[Entry]:
    """Images with their label maps, in the order of names.

    Raises:
      InputError: there are images and label maps, but no pair.
    """
    images, images_twice = _by_stem(image_folder, tuple(image_files.FORMATS), rejected)
    labels, labels_twice = _by_stem(label_folder, image_files.LOSSLESS, rejected)
    # Two files of one name are both left out, since either may be right.
    for name in images_twice | labels_twice:
        images.pop(name, None)
        labels.pop(name, None)
    if images and labels and not images.keys() & labels.keys():
        images, labels = _without_affixes(root, images, labels, notes)
    for name in sorted(images.keys() - labels.keys()):
        rejected.append(Rejected(name, f"{images[name]} has no label map in {label_folder}"))
    for name in sorted(labels.keys() - images.keys()):
        rejected.append(Rejected(name, f"{labels[name]} has no image in {image_folder}"))
    names = sorted(
        images.keys() & labels.keys(), key=lambda s: (len(s), s) if s.isdecimal() else (0, s)
    )
    return [Entry(name, ("pair", images[name], labels[name])) for name in names]


def _without_affixes(
    folder: Path, images: dict[str, Path], labels: dict[str, Path], notes: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files by name without common affixes: image_1 and 1_mask both become 1.

    Removes a prefix or suffix that all images, or all label maps, share, except for digits, which
    distinguish items. One side may have extra files, but not both.

    Raises:
      InputError: names do not match even without their affixes.
    """
    bare_images, bare_labels = _bare(images), _bare(labels)
    together = bare_images.keys() & bare_labels.keys()
    # If both sides have extra names, one may be numbered from 0 and the other from 1.
    if not together or together not in (bare_images.keys(), bare_labels.keys()):
        raise InputError(
            f"the {len(images)} images and {len(labels)} label maps of {folder} have no name in "
            f"common (the first are {min(images.values()).name} and {min(labels.values()).name}): "
            "give an image and its label map the same name"
        )
    first = min(together)
    notes.append(
        f"names in {folder} differ, so {bare_images[first].name} is paired with "
        f"{bare_labels[first].name}, and likewise {len(together)} pairs in all"
    )
    own = {bare: stem(path) for bare, path in bare_images.items()}
    return images, {own.get(bare, stem(path)): path for bare, path in bare_labels.items()}


def _bare(files: dict[str, Path]) -> dict[str, Path]:
    """Files by name without the affixes that all share; {} if the rest is not unique."""
    common = os.path.commonprefix
    prefix = common(list(files)).rstrip("0123456789")
    rest = [name[len(prefix) :] for name in files]
    suffix = common([name[::-1] for name in rest])[::-1].lstrip("0123456789")
    bare = [name[: len(name) - len(suffix)] for name in rest]
    if "" in bare or len(set(bare)) < len(bare):
        return {}
    return dict(zip(bare, files.values(), strict=True))


def _by_stem(
    folder: Path, suffixes: Sequence[str], rejected: list[Rejected]
) -> tuple[dict[str, Path], set[str]]:
    """Files by name without suffix, and the names that several files have."""
    try:
        paths = sorted(path for path in folder.iterdir() if is_content(path.name))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed ({error.strerror}): give both images and labels, with a "
            "label map for each image"
        ) from error
    by_name: dict[str, Path] = {}
    twice: set[str] = set()
    for path in paths:
        name = stem(path)
        if path.suffix.lower() not in suffixes:
            rejected.append(Rejected(name, f"{path} is not named like a {_kinds(suffixes)}"))
        elif name in by_name:
            reason = f"{path} and {by_name[name].name} have one name: remove one"
            rejected.append(Rejected(name, reason))
            twice.add(name)
        else:
            by_name[name] = path
    return by_name, twice


def _kinds(suffixes: Collection[str]) -> str:
    lossy = ".jpg" in suffixes
    return f"{image_files.FORMAT_NAMES if lossy else image_files.LOSSLESS_NAMES} file"
