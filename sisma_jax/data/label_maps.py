"""Label maps as arrays and as PNG files.

A label map is a uint8 array (height, width) of class ids, those of CelebAMask-HQ unless another set
is given, and 255 (`classes.UNLABELLED`) where a pixel has no class. On disk it is a PNG in one of
three forms: 8-bit greyscale values that are ids, palette indices that are ids, or RGB in the
classes' colours or in those of PASCAL VOC, which SPADE and its kin use. Whatever could have changed
an id on the way (lossy compression, alpha, another bit depth) is refused rather than guessed at.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.class_names import BISENET
from sisma_jax.data import image_files
from sisma_jax.data.classes import CELEBAMASK, CLASSES, UNLABELLED, UNLABELLED_COLOUR, ClassSet
from sisma_jax.errors import InputError

CLASS_ORDERS = ("canonical", "bisenet")
"""Orders in which the CelebAMask-HQ classes are numbered: the data set's own, and that of
face-parsing.PyTorch (a BiSeNet), which much of the field's software writes."""

_FROM_BISENET = np.arange(256, dtype=np.uint8)
_FROM_BISENET[: len(BISENET)] = [CLASSES.index(name) for name in BISENET]

# The fields of a PNG header that Pillow hides: it widens 2- and 4-bit greyscale and narrows 16-bit
# colour without a word.
_DEPTH_BYTE, _COLOUR_TYPE_BYTE = 24, 25
_RGB, _INDEXED, _WITH_ALPHA = 2, 3, (4, 6)

_NO_CLASS = -1


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
    """Writes an indexed PNG: it shows in class colours and reads back as the same ids."""
    image = Image.fromarray(labels)
    image.putpalette(classes.shown.tobytes())
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


def read_label_map(
    path: Path | str,
    classes: ClassSet = CELEBAMASK,
    *,
    class_order: str = "canonical",
    allow_unlabelled: bool = False,
) -> UInt8[np.ndarray, "h w"]:
    """Reads a label map from a PNG file.

    A greyscale file's values are ids; an RGB file's colours are looked up among the classes', or
    where they are none of these, among PASCAL VOC's. An indexed file's indices are ids, unless they
    cannot be and its colours are all class colours; where both readings are possible and differ,
    the file is refused.

    Args:
      path: the PNG file.
      classes: the set that the ids are of.
      class_order: one of CLASS_ORDERS; "bisenet" renumbers ids (not the classes' own colours, which
        say what they are) and is for CelebAMask-HQ's classes alone.
      allow_unlabelled: let pixels be unlabelled: id 255, or mid grey (128, 128, 128) in RGB.

    Returns:
      uint8 ids from 0 to len(classes) - 1, and 255 where `allow_unlabelled` let it pass.

    Raises:
      InputError: the file is unreadable, no PNG, has alpha or another bit depth than 8, or holds an
        id or a colour of no class; the message names the first such pixel as (x, y).
    """
    if class_order not in CLASS_ORDERS:
        raise InputError(f"class order {class_order!r}: choose {' or '.join(CLASS_ORDERS)}")
    if class_order != "canonical" and classes != CELEBAMASK:
        raise InputError(f"class order {class_order!r} is one of CelebAMask-HQ's classes alone")
    colour_type = _checked_colour_type(path)
    image = image_files.load(path, "PNG")
    reader = _Reader(path, classes, allow_unlabelled)
    pixels = np.array(image)
    if colour_type == _RGB:
        ids, numbered = reader.ids_from_colours(pixels)
    elif colour_type == _INDEXED:
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        ids, numbered = reader.ids_from_indices(pixels, palette)
    else:
        ids, numbered = pixels, True
    reader.check(ids)
    return _FROM_BISENET[ids] if numbered and class_order == "bisenet" else ids


def _checked_colour_type(path: Path | str) -> int:
    try:
        with open(path, "rb") as file:
            header = file.read(_COLOUR_TYPE_BYTE + 1)
    except OSError as error:
        raise InputError(
            f"mask {path} cannot be opened ({error.strerror}): name a readable PNG file"
        ) from error
    if not header.startswith(image_files.PNG_SIGNATURE):
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


def _voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The colours of ids 0.. as PASCAL VOC has them: their bits spread over the three channels."""
    colours = []
    for label in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
        colours.append(tuple(channels))
    return tuple(colours)


class _Reader:
    """What the pixels of one file mean."""

    def __init__(self, path: Path | str, classes: ClassSet, allow_unlabelled: bool):
        self.path, self.classes, self.allow_unlabelled = path, classes, allow_unlabelled

    def is_id(self, values: np.ndarray) -> np.ndarray:
        return (values < len(self.classes)) | (self.allow_unlabelled & (values == UNLABELLED))

    def check(self, ids: np.ndarray) -> None:
        wrong = ~self.is_id(ids)
        if not wrong.any():
            return
        x, y = _first_pixel(wrong)
        value = int(ids[y, x])
        if value == UNLABELLED:
            raise InputError(
                f"mask {self.path} holds {UNLABELLED} (unlabelled) at pixel ({x}, {y}): give the "
                "pixel a class, or allow unlabelled pixels"
            )
        raise InputError(
            f"mask {self.path} holds the value {value} at pixel ({x}, {y}), but class ids run from "
            f"0 to {len(self.classes) - 1}: number its classes as {_known(self.classes)} are"
        )

    def by_colour(self, colours: np.ndarray, known: tuple[tuple[int, int, int], ...]) -> np.ndarray:
        """Ids (int16) of RGB colours (..., 3) among `known`; `_NO_CLASS` for any other."""
        labelled = list(enumerate(known))
        if self.allow_unlabelled and UNLABELLED_COLOUR not in known:
            labelled.append((UNLABELLED, UNLABELLED_COLOUR))
        weights = np.array([1 << 16, 1 << 8, 1])
        codes = np.array([np.array(colour) @ weights for _, colour in labelled])
        ids = np.array([label for label, _ in labelled], np.int16)
        order = np.argsort(codes)
        wanted = colours.astype(np.int64) @ weights
        place = order[np.searchsorted(codes[order], wanted).clip(max=len(codes) - 1)]
        return np.where(codes[place] == wanted, ids[place], np.int16(_NO_CLASS))

    def ids_from_colours(self, rgb: np.ndarray) -> tuple[np.ndarray, bool]:
        """Ids, and whether it was by their numbers that the file was painted."""
        ids = self.by_colour(rgb, self.classes.colours)
        voc = self.by_colour(rgb, _voc_colours(len(self.classes)))
        own, other = (ids != _NO_CLASS).all(), (voc != _NO_CLASS).all()
        if own and other and (ids != voc).any():
            x, y = _first_pixel(ids != voc)
            raise InputError(
                f"mask {self.path} is ambiguous at pixel ({x}, {y}): its colours are those of the "
                "data set and those of PASCAL VOC; save it as greyscale ids"
            )
        if own or other:
            return (ids if own else voc).astype(np.uint8), not own
        x, y = _first_pixel(ids == _NO_CLASS)
        colour = tuple(map(int, rgb[y, x]))
        distances = np.sum((np.array(self.classes.colours) - colour) ** 2, axis=1)
        nearest = int(np.argmin(distances))
        raise InputError(
            f"mask {self.path} has the colour {colour} at pixel ({x}, {y}), which is no class "
            f"colour (the nearest is {self.classes.names[nearest]}, "
            f"{self.classes.colours[nearest]}): paint with the exact colours of "
            f"{_known(self.classes)} and without soft edges"
        )

    def ids_from_indices(self, indices: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, bool]:
        """The indices as they are, or the classes of their colours, and whether the former."""
        used = np.unique(indices)
        if used[-1] >= len(palette):
            return indices, True
        by_colour = self.by_colour(palette[used], self.classes.colours)
        # Palettes that show several ids in one colour (all black, say) say nothing about classes.
        if (by_colour == _NO_CLASS).any() or len(np.unique(by_colour)) < len(used):
            return indices, True
        if self.is_id(used).all() and (by_colour != used).any():
            first = int(np.argmax(by_colour != used))
            x, y = _first_pixel(indices == used[first])
            raise InputError(
                f"mask {self.path} is ambiguous at pixel ({x}, {y}): palette index {used[first]} "
                f"has the colour of class {by_colour[first]}; save it as greyscale ids or as RGB"
            )
        lookup = np.zeros(256, np.uint8)
        lookup[used] = by_colour
        return lookup[indices], False


def _known(classes: ClassSet) -> str:
    if classes == CELEBAMASK:
        return "sisma_jax.data.classes.CELEBAMASK"
    return f"the data set's classes ({', '.join(classes.names[:4])}, ...)"
