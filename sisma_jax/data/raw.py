"""Faces and label maps straight from a raw CelebAMask-HQ folder (`raw_layout`).

The label map of a face is composed of its part masks in the order of `classes.CLASSES`: later
parts cover earlier ones. The folder is listed once, when it is opened, so that no time is spent on
looking for absent parts later.
Splits are by id, as in the synthesis papers (SEAN, SDM, CA2-SIS): ids below `test_from` are train,
the others test.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import local_path
from sisma_jax.data import checksums, image_files, raw_layout
from sisma_jax.data.classes import CELEBAMASK, UNLABELLED
from sisma_jax.data.label_maps import resize_nearest

FIELDS = ("image", "labels")
TEST_FROM = 28_000
"""First id of the synthesis papers' test split of the full set's 30,000 faces."""

_WHITE_FROM = 128
_NEARLY_BLACK = 16
"""Largest change of the grey levels 0 and 255 that is attributed to compression or resizing."""


class BlackFace(InputError):
    """All part masks of a face are black."""


class RawFaces:
    """Random access to the faces of a raw folder, ascending by id; a grain data source.

    Item `i` is a dict of the requested fields: "image" uint8 (size, size, 3), RGB, downscaled once
    with antialiasing; "labels" uint8 (size, size), class ids, merged at the masks' own resolution
    and resized to the nearest, or all 255 (unlabelled), with a warning, if all part masks are
    black. Reading is thread-safe; an unusable file raises an `InputError` that names it.

    Attributes:
      ids: int32 (len,), number of each item in the data set.
      classes: CelebAMask-HQ's.
      checksum: checksum of the whole folder's listing, the same for every split
        (`checksums.of_listing`): ids, and each face's parts if labels are requested.
    """

    classes = CELEBAMASK

    def __init__(
        self,
        path: Path | str,
        size: int,
        *,
        split: str = "train",
        test_from: int = TEST_FROM,
        fields: Sequence[str] = FIELDS,
        test_from_option: str = "test_from=",
    ):
        """List the folder and read its first face, so that errors show at once.

        Args:
          path: the folder that holds `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno`.
          size: side of the items in pixels, at most that of the images.
          split: "train" (ids below `test_from`), "test" (the others) or "all".
          test_from: first id of the test split.
          fields: fields of an item; the folder of a field that is not requested may be missing.
          test_from_option: how the caller's user sets `test_from`, for errors.

        Raises:
          InputError: a folder is missing or empty, a file is misnamed, images and masks do not
            belong to the same ids, the split is empty, or its first face cannot be read.
        """
        self._root = local_path(path)
        self._masks = raw_layout.mask_folder(self._root)
        self._split, self._size = split, size
        self._fields = tuple(fields)

        raw_layout.check_root(self._root)
        parts = raw_layout.list_parts(self._masks) if "labels" in self._fields else {}
        images = raw_layout.list_images(self._root) if "image" in self._fields else {}
        if parts and images:
            raw_layout.check_pairs(self._root, images.keys(), parts.keys())

        ids = np.array(sorted(images or parts), np.int32)
        self.checksum = checksums.of_listing(ids.tolist(), parts)
        self.ids = ids[_in_split(ids, split, test_from)]
        if not len(self.ids):
            first, last = ids[0], ids[-1]
            remedy = (
                f"set {test_from_option}N with N from {first + 1} to {last}"
                if first < last
                else "both splits need a face, so add one"
            )
            raise InputError(
                f"{self} is empty, since its ids run from {first} to {last} and the test split "
                f"starts at {test_from}: {remedy}"
            )
        self._faces = [
            raw_layout.Face(face, images.get(face, ""), parts.get(face, ()))
            for face in self.ids.tolist()
        ]
        self[0]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        face = self._faces[index]
        item = {}
        if "image" in self._fields:
            item["image"] = read_image(face.image_path(self._root), self._size)
        if "labels" in self._fields:
            item["labels"] = self._labels(face)
        return item

    def _labels(self, face: raw_layout.Face) -> UInt8[np.ndarray, "size size"]:
        try:
            return read_parts(self._masks, face, self._size)
        except BlackFace as error:  # only a warning, since an error would end the training
            warnings.warn(f"{error}: its pixels are unlabelled here", stacklevel=2)
            return np.full((self._size, self._size), UNLABELLED, np.uint8)

    def __str__(self) -> str:
        return f"split {self._split!r} of {self._root}"

    def __repr__(self) -> str:
        return f"RawFaces({str(self._root)!r}, size={self._size}, {len(self)} faces)"


def _in_split(ids: np.ndarray, split: str, test_from: int) -> np.ndarray:
    if split == "train":
        return ids < test_from
    if split == "test":
        return ids >= test_from
    if split == "all":
        return np.ones_like(ids, bool)
    raise InputError(f"split {split!r} does not exist: choose train, test or all")


def read_image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Read a square picture (`image_files.read_picture`), downscaled once with antialiasing.

    Raises:
      InputError: it cannot be read, is not square or smaller than `size`.
    """
    # The decoder may reduce the picture to no less than twice the size, which halves the time.
    # LANCZOS does the rest. The result has 54 dB against a full decode (1/f picture, 1024 to 256
    # pixels).
    return fit(path, image_files.read_picture(path, draft=2 * size), size)


def fit(path: Path, image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Downscale a square RGB image of at least `size` pixels.

    Raises:
      InputError: it is not square or too small; the message names `path`.
    """
    if image.width != image.height or image.width < size:
        raise InputError(
            f"{path} has {image.width} x {image.height} pixels, but square images of at least "
            f"{size} x {size} are asked for: choose a smaller size or other images"
        )
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def read_parts(masks: Path, face: raw_layout.Face, size: int) -> UInt8[np.ndarray, "size size"]:
    """Read the label map of a face, merged at its masks' resolution, resized to the nearest.

    Raises:
      BlackFace: all parts are black, as those of CelebAMask-HQ's face 4790.
      InputError: a part cannot be read, is not binary or of another size than those before it.
    """
    labels = _merge_parts(masks, face)
    height, width = labels.shape
    if height != width:
        raise InputError(
            f"the parts of face {face.id} in {masks} have {width} x {height} pixels: bring them to "
            "a square"
        )
    if not labels.any():
        raise BlackFace(
            f"all {len(face.parts)} part masks of face {face.id} in {masks} are black, so the "
            "place of the face is unknown"
        )
    return labels if labels.shape == (size, size) else resize_nearest(labels, size)


def _merge_parts(masks: Path, face: raw_layout.Face) -> UInt8[np.ndarray, "h w"]:
    """Composes the label map: later parts cover earlier ones, in class order."""
    labels = None
    for label, name in face.parts:
        path = masks / name
        where = _read_part(path)
        if labels is None:
            labels = np.zeros(where.shape, np.uint8)
        if where.shape != labels.shape:
            raise InputError(
                f"{path} has {where.shape[1]} x {where.shape[0]} pixels, but the parts of face "
                f"{face.id} before it have {labels.shape[1]} x {labels.shape[0]}: bring all parts "
                "of a face to one size"
            )
        np.copyto(labels, np.uint8(label), where=where)
    return labels


def _read_part(path: Path) -> Bool[np.ndarray, "h w"]:
    image = image_files.read_lossless(path).image
    if image.mode not in ("1", "L", "P", "RGB") or image.has_transparency_data:
        raise InputError(
            f"{path} has pixels of type {image.mode}, or some that are transparent: save it as an "
            "8-bit PNG, white on black, without transparency"
        )
    values = np.asarray(image.convert("L"))
    # Soft edges of a resized mask are thresholded at one half. In a file that is mostly grey (1 in
    # place of 255, a label map, a photograph), the threshold would silently remove the part.
    plain = np.count_nonzero((values <= _NEARLY_BLACK) | (values >= 255 - _NEARLY_BLACK))
    if values.any() and (values.max() < _WHITE_FROM or 2 * plain < values.size):
        white = np.count_nonzero(values == 255)
        grey = np.count_nonzero(values) - white
        raise InputError(
            f"{path} is not a binary mask ({grey} pixels are neither 0 nor 255, only {white} are "
            "255): replace it by one that is white (255) on black (0)"
        )
    return values >= _WHITE_FROM
