"""Label maps as arrays and as PNG files.

A label map is a uint8 array (height, width) of class ids: 0..18 in the order of `classes.CLASSES`,
and 255 (`classes.UNLABELLED`) where a pixel has no class. On disk it is a PNG in one of three
forms: 8-bit greyscale values that are ids, palette indices that are ids, or RGB in the colours of
`classes.PALETTE`. Whatever could have changed an id on the way (lossy compression, alpha, another
bit depth) is refused rather than guessed at.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.data import image_files
from sisma_jax.data.classes import CLASSES, FLIP_PAIRS, PALETTE, UNLABELLED
from sisma_jax.errors import InputError

_UNLABELLED_COLOUR = (128, 128, 128)

_COLOURS = np.full((256, 3), _UNLABELLED_COLOUR, np.uint8)
_COLOURS[: len(CLASSES)] = PALETTE

_MIRRORED = np.arange(256, dtype=np.uint8)
_MIRRORED[np.ravel(FLIP_PAIRS)] = np.ravel(np.flip(FLIP_PAIRS, axis=1))

# The fields of a PNG header that Pillow hides: it widens 2- and 4-bit greyscale and narrows 16-bit
# colour without a word.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH_BYTE, _COLOUR_TYPE_BYTE = 24, 25
_RGB, _INDEXED, _WITH_ALPHA = 2, 3, (4, 6)

_NO_CLASS = -1


def flip(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The label map of the mirrored face: columns reversed, left and right classes exchanged."""
    return _MIRRORED[labels[:, ::-1]]


def colourise(labels: UInt8[np.ndarray, "*batch h w"]) -> UInt8[np.ndarray, "*batch h w 3"]:
    """RGB picture of label maps in the colours of `PALETTE`; unlabelled pixels are mid grey."""
    return _COLOURS[labels]


def resize_nearest(labels: UInt8[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "size size"]:
    """Label map of `size` x `size` pixels, each the label under its centre."""
    height, width = labels.shape
    centres = 2 * np.arange(size) + 1
    return labels[centres * height // (2 * size)][:, centres * width // (2 * size)]


def write_label_map(path: Path | str, labels: UInt8[np.ndarray, "h w"]) -> None:
    """Writes an indexed PNG: it shows in class colours and reads back as the same ids."""
    image = Image.fromarray(labels)
    image.putpalette(_COLOURS.tobytes())
    image_files.save_png(image, path)


def collect_masks(paths: Iterable[Path | str]) -> list[Path]:
    """The mask files that the user's paths stand for, in the order given.

    Args:
      paths: files, taken as they are, and folders, each standing for its PNG files by name.

    Raises:
      InputError: a path does not exist, or a folder holds no PNG file.
    """
    masks = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"mask {path} does not exist: name a PNG file or a folder of them")
        if not path.is_dir():
            masks.append(path)
            continue
        # Archives unpacked on macOS carry a hidden `._name.png` beside every file.
        inside = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() == ".png" and not file.name.startswith(".")
        )
        if not inside:
            raise InputError(
                f"folder {path} holds no PNG file: masks are read from files named *.png "
                "directly inside it"
            )
        masks.extend(inside)
    return masks


def read_label_map(path: Path | str, *, allow_unlabelled: bool = False) -> UInt8[np.ndarray, "h w"]:
    """Reads a label map from a PNG file.

    A greyscale file's values are ids, an RGB file's colours are looked up in `PALETTE`. An indexed
    file's indices are ids, unless they cannot be and its colours are all class colours; where both
    readings are possible and differ, the file is refused.

    Args:
      path: the PNG file.
      allow_unlabelled: let pixels be unlabelled: id 255, or mid grey (128, 128, 128) in RGB.

    Returns:
      uint8 ids in 0..18, and 255 where `allow_unlabelled` let it pass.

    Raises:
      InputError: the file is unreadable, no PNG, has alpha or another bit depth than 8, or holds an
        id or a colour of no class; the message names the first such pixel as (x, y).
    """
    colour_type = _checked_colour_type(path)
    image = image_files.load(path, "PNG")
    pixels = np.array(image)
    if colour_type == _RGB:
        return _ids_from_colours(path, pixels, allow_unlabelled)
    if colour_type == _INDEXED:
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        pixels = _resolve_indices(path, pixels, palette, allow_unlabelled)
    return _checked_ids(path, pixels, allow_unlabelled)


def _checked_colour_type(path: Path | str) -> int:
    try:
        with open(path, "rb") as file:
            header = file.read(_COLOUR_TYPE_BYTE + 1)
    except OSError as error:
        raise InputError(
            f"mask {path} cannot be opened ({error.strerror}): name a readable PNG file"
        ) from error
    if not header.startswith(_SIGNATURE):
        kind = (
            "a JPEG, whose compression blurs class ids" if header[:2] == b"\xff\xd8" else "no PNG"
        )
        raise InputError(
            f"mask {path} is {kind}: save it again, from the original, as an 8-bit PNG of class ids"
        )
    if len(header) <= _COLOUR_TYPE_BYTE:
        raise InputError(f"mask {path} is cut short: replace the file by an intact one")
    depth, colour_type = header[_DEPTH_BYTE], header[_COLOUR_TYPE_BYTE]
    if colour_type in _WITH_ALPHA:
        raise InputError(
            f"mask {path} has an alpha channel, which can mean no class: save it without "
            "transparency, as class ids or in the class colours"
        )
    if depth != 8 and colour_type != _INDEXED:
        raise InputError(
            f"mask {path} has {depth}-bit values, not 8-bit ones: save its class ids as an "
            "8-bit greyscale or indexed PNG"
        )
    return colour_type


def _first_pixel(wrong: np.ndarray) -> tuple[int, int]:
    """(x, y) of the first True in reading order."""
    y, x = np.unravel_index(np.argmax(wrong), wrong.shape)
    return int(x), int(y)


def _is_id(values: np.ndarray, allow_unlabelled: bool) -> np.ndarray:
    return (values < len(CLASSES)) | (allow_unlabelled & (values == UNLABELLED))


def _checked_ids(path: Path | str, ids: np.ndarray, allow_unlabelled: bool) -> np.ndarray:
    wrong = ~_is_id(ids, allow_unlabelled)
    if not wrong.any():
        return ids
    x, y = _first_pixel(wrong)
    value = int(ids[y, x])
    if value == UNLABELLED:
        raise InputError(
            f"mask {path} holds {UNLABELLED} (unlabelled) at pixel ({x}, {y}): give the pixel "
            "a class, or allow unlabelled pixels"
        )
    raise InputError(
        f"mask {path} holds the value {value} at pixel ({x}, {y}), but class ids run from 0 to "
        f"{len(CLASSES) - 1}: remap it to the order of sisma_jax.data.classes.CLASSES"
    )


def _classes_of_colours(colours: np.ndarray, allow_unlabelled: bool) -> np.ndarray:
    """Ids (int16) of RGB colours (..., 3); `_NO_CLASS` for a colour that no class has."""
    known = list(enumerate(PALETTE))
    if allow_unlabelled:
        known.append((UNLABELLED, np.array(_UNLABELLED_COLOUR, np.uint8)))
    weights = np.array([1 << 16, 1 << 8, 1])
    codes = np.array([colour @ weights for _, colour in known])
    ids = np.array([label for label, _ in known], np.int16)
    order = np.argsort(codes)
    wanted = colours @ weights
    place = order[np.searchsorted(codes[order], wanted).clip(max=len(codes) - 1)]
    return np.where(codes[place] == wanted, ids[place], np.int16(_NO_CLASS))


def _ids_from_colours(path: Path | str, rgb: np.ndarray, allow_unlabelled: bool) -> np.ndarray:
    ids = _classes_of_colours(rgb, allow_unlabelled)
    if (ids != _NO_CLASS).all():
        return ids.astype(np.uint8)
    x, y = _first_pixel(ids == _NO_CLASS)
    colour = tuple(map(int, rgb[y, x]))
    distances = np.sum((PALETTE.astype(int) - colour) ** 2, axis=1)
    nearest = int(np.argmin(distances))
    raise InputError(
        f"mask {path} has the colour {colour} at pixel ({x}, {y}), which is no class colour "
        f"(the nearest is {CLASSES[nearest]}, {tuple(map(int, PALETTE[nearest]))}): paint with the "
        "exact colours of sisma_jax.data.classes.PALETTE and without soft edges"
    )


def _resolve_indices(
    path: Path | str, indices: np.ndarray, palette: np.ndarray, allow_unlabelled: bool
) -> np.ndarray:
    """What an indexed file's pixels mean: ids as they are, or the classes of their colours."""
    used = np.unique(indices)
    if used[-1] >= len(palette):
        return indices
    by_colour = _classes_of_colours(palette[used], allow_unlabelled)
    # Palettes that show several ids in one colour (all black, say) say nothing about classes.
    if (by_colour == _NO_CLASS).any() or len(np.unique(by_colour)) < len(used):
        return indices
    if _is_id(used, allow_unlabelled).all() and (by_colour != used).any():
        first = int(np.argmax(by_colour != used))
        x, y = _first_pixel(indices == used[first])
        raise InputError(
            f"mask {path} is ambiguous at pixel ({x}, {y}): palette index {used[first]} has "
            f"the colour of class {by_colour[first]}; save it as greyscale ids or as RGB"
        )
    lookup = np.zeros(256, np.uint8)
    lookup[used] = by_colour
    return lookup[indices]
