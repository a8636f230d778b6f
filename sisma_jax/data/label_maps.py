"""Label maps as arrays and as files.

A label map is a uint8 array (height, width) of class ids, those of CelebAMask-HQ unless another set
is given, and 255 (`classes.UNLABELLED`) where a pixel has no class. On disk it is a PNG, BMP, TIFF
or lossless WebP file in one of four forms: 8-bit greyscale values that are ids, palette indices
that are ids, RGB in the classes' colours or in those of PASCAL VOC, as SPADE and related code use,
or RGB whose three channels all hold the id. Anything that may have changed an id (lossy
compression, alpha, another bit depth) is refused; soft edges between class colours are read only if
the caller says how far a colour may be off.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_content, other_files
from sisma_jax.data import image_files
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.label_values import FROM_BISENET, Reading, Values


def flip(
    labels: UInt8[np.ndarray, "h w"], classes: ClassSet = CELEBAMASK
) -> UInt8[np.ndarray, "h w"]:
    """The label map of the mirrored image: columns reversed, left and right classes exchanged."""
    # Ten times as fast as indexing the table by the labels.
    mirrored = bytearray(labels[:, ::-1].tobytes()).translate(classes.mirrored.tobytes())
    return np.frombuffer(mirrored, np.uint8).reshape(labels.shape)


def colourise(
    labels: UInt8[np.ndarray, "*batch h w"], classes: ClassSet = CELEBAMASK
) -> UInt8[np.ndarray, "*batch h w 3"]:
    """RGB picture of label maps in the classes' colours; unlabelled pixels are mid grey."""
    return classes.shown[labels]


def resize_nearest(labels: UInt8[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "size size"]:
    """Label map of `size` x `size` pixels, each the label under its centre."""
    height, width = labels.shape
    centres = 2 * np.arange(size) + 1
    return labels[centres * height // (2 * size)][:, centres * width // (2 * size)]


def write_label_map(
    path: Path | str, labels: UInt8[np.ndarray, "h w"], classes: ClassSet = CELEBAMASK
) -> None:
    """Write an indexed PNG, which shows class colours and reads back as the same ids."""
    image = Image.fromarray(labels)
    image.putpalette(classes.shown.tobytes())
    image_files.save_png(image, path)


def collect_masks(paths: Iterable[Path | str]) -> list[Path]:
    """Return the mask files that paths stand for, in the order given.

    Args:
      paths: files, taken as they are, and folders, which stand for their files with a suffix in
        `image_files.LOSSLESS`, ordered by name.

    Raises:
      InputError: a path does not exist, or a folder holds no such file.
    """
    masks = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(
                f"mask {path} does not exist: name a {image_files.LOSSLESS_NAMES} file or a folder "
                "of them"
            )
        if not path.is_dir():
            masks.append(path)
            continue
        content = sorted(file for file in path.iterdir() if is_content(file.name))
        inside = [file for file in content if file.suffix.lower() in image_files.LOSSLESS]
        if not inside:
            names = [file.name for file in content]
            others = f" (it holds {other_files(names)})" if names else ""
            raise InputError(
                f"folder {path} holds no {image_files.LOSSLESS_NAMES} file{others}: masks are "
                "read from such files directly inside it"
            )
        masks.extend(inside)
    return masks


def read_label_map(
    path: Path | str,
    classes: ClassSet = CELEBAMASK,
    *,
    class_order: str = "canonical",
    allow_unlabelled: bool = False,
    nearest_colour: float | int | None = None,
) -> UInt8[np.ndarray, "h w"]:
    """Read a label map from a file.

    A greyscale file's values are ids. An RGB file's colours are looked up among the classes', then
    among PASCAL VOC's; if all are grey and neither fits, they are ids. An indexed file's indices
    are ids, unless they cannot be and its colours are all class colours; if both readings are
    possible and differ, the file is refused.

    Args:
      path: a PNG, BMP, TIFF or lossless WebP file.
      classes: the classes that the ids index.
      class_order, allow_unlabelled, nearest_colour: see `Reading`.

    Returns:
      uint8 ids from 0 to len(classes) - 1, and 255 if `allow_unlabelled`.

    Raises:
      InputError: the file is unreadable, lossy, of another format, has alpha or another bit depth
        than 8, or holds an id or a colour of no class; the message names the first such pixel as
        (x, y).
    """
    return read_with_share(path, classes, Reading(class_order, allow_unlabelled, nearest_colour))[0]


def read_with_share(
    path: Path | str, classes: ClassSet, reading: Reading
) -> tuple[UInt8[np.ndarray, "h w"], float]:
    """Like `read_label_map`, with the share of pixels that took the nearest class colour."""
    reading.check(classes)
    stored = image_files.read_lossless(path)
    _check_form(path, stored)
    reader = Values(path, classes, reading)
    pixels = np.array(stored.image)
    if stored.image.mode == "RGB":
        ids, numbered = reader.ids_from_colours(pixels)
    elif stored.image.mode == "P":
        palette = np.asarray(stored.image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        ids, numbered = reader.ids_from_indices(pixels, palette)
    else:
        ids, numbered = pixels, True
    reader.check(ids)
    renumbered = numbered and reading.class_order == "bisenet"
    return (FROM_BISENET[ids] if renumbered else ids), reader.share


def _check_form(path: Path | str, stored: image_files.Stored) -> None:
    """Raises InputError unless values can be ids or class colours."""
    if stored.has_alpha:
        raise InputError(
            f"mask {path} has an alpha channel, which label maps cannot have: save it without "
            "transparency, as class ids or in the class colours"
        )
    mode = stored.image.mode
    if mode not in ("L", "P", "RGB") or (stored.depth != 8 and mode != "P"):
        what = f"{stored.depth}-bit" if stored.depth != 8 else f"{mode}"
        raise InputError(
            f"mask {path} has {what} values, not 8-bit ones: save its class ids as an 8-bit "
            "greyscale or indexed PNG"
        )
