"""Interpretation of values in label map files: ids, palette indices, colours, soft edges between
colours. `label_maps` reads the files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8, UInt32

from sisma_jax.common.errors import InputError
from sisma_jax.data import soft_edges
from sisma_jax.data.class_names import BISENET
from sisma_jax.data.classes import CELEBAMASK, CLASSES, UNLABELLED, UNLABELLED_COLOUR, ClassSet

CLASS_ORDERS = ("canonical", "bisenet")
"""Orders in which the CelebAMask-HQ classes are numbered: the data set's own, and that of
face-parsing.PyTorch (a BiSeNet), which much other software writes."""

FROM_BISENET = np.arange(256, dtype=np.uint8)
FROM_BISENET[: len(BISENET)] = [CLASSES.index(name) for name in BISENET]
"""Canonical id, by the id of face-parsing.PyTorch."""
_NO_CLASS = -1
_BLOCK = 2**20
"""Pixels whose colours are looked up at a time, which bounds the memory for large files."""
MOST_COLOURS = 2**16
"""Limit of colours in one file; soft edges turn a few into thousands."""
MOST_UNSURE = 2**21
"""Limit of pixels in one file whose class is decided by their surroundings."""
OWN, VOC, GREY = "the data set's class colours", "the colours of PASCAL VOC", "ids as grey"
"""Possible meanings of an RGB file's colours."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading label maps."""

    class_order: str = "canonical"
    """One of CLASS_ORDERS; "bisenet" renumbers ids (not files in class colours, which are
    unambiguous) and is for CelebAMask-HQ's classes only."""
    allow_unlabelled: bool = False
    """Accept unlabelled pixels: id 255, or mid grey (128, 128, 128) in RGB."""
    nearest_colour: float | int | None = None
    """Largest Euclidean distance in RGB at which a colour is mapped to the nearest class colour;
    None maps none. Classes around a blended pixel come first, since the mean of two class colours
    may be close to that of a third class."""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if self.class_order not in CLASS_ORDERS:
            raise InputError(
                f"class order {self.class_order!r}: choose {' or '.join(CLASS_ORDERS)}"
            )
        distance = self.nearest_colour
        if distance is not None and not 0 < distance < 442:
            raise InputError(
                f"--nearest-colour is {distance}: give a distance in RGB, more than 0 and less "
                "than 442, from black to white"
            )

    def check(self, classes: ClassSet) -> None:
        """Raises InputError if it does not apply to these classes."""
        if self.class_order != "canonical" and classes != CELEBAMASK:
            raise InputError(
                f"class order {self.class_order!r} is for CelebAMask-HQ's classes only, but "
                f"these are {', '.join(classes.names[:4])}, ...: leave it out"
            )


LENIENT = Reading(allow_unlabelled=True)
"""Accepts unlabelled pixels, for masks of which the model may decide a part."""


def _first_pixel(wrong: np.ndarray) -> tuple[int, int]:
    """(x, y) of the first True in reading order."""
    y, x = np.unravel_index(np.argmax(wrong), wrong.shape)
    return int(x), int(y)


def _voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """PASCAL VOC's colours of the first `count` ids: the ids' bits spread over three channels."""
    colours = []
    for label in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
        colours.append(tuple(channels))
    return tuple(colours)


def _blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows of a picture, as views, of about `_BLOCK` pixels each."""
    rows = max(1, _BLOCK // pixels.shape[1])
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]


def _codes(rgb: UInt8[np.ndarray, "*shape 3"]) -> UInt32[np.ndarray, "*shape"]:
    """One number per colour, 0xRRGGBB."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _colours(codes: UInt32[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)


class Values:
    """Converts the pixels of one file to class ids.

    Attributes:
      share: share of pixels that took the nearest class colour.
    """

    def __init__(self, path: Path | str, classes: ClassSet, reading: Reading):
        self.path, self.classes = path, classes
        self.allow_unlabelled, self.nearest = reading.allow_unlabelled, reading.nearest_colour
        self.share = 0.0

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
                "pixel a class, or allow unlabelled pixels (--allow-unlabelled)"
            )
        raise InputError(
            f"mask {self.path} holds the value {value} at pixel ({x}, {y}), but class ids run from "
            f"0 to {len(self.classes) - 1}: number its classes as {_known(self.classes)} are"
        )

    def by_colour(
        self, colours: UInt8[np.ndarray, "n 3"], known: tuple[tuple[int, int, int], ...]
    ) -> Int16[np.ndarray, "n"]:
        """Ids of RGB colours among `known`; `_NO_CLASS` for any other."""
        labelled = list(enumerate(known))
        if self.allow_unlabelled and UNLABELLED_COLOUR not in known:
            labelled.append((UNLABELLED, UNLABELLED_COLOUR))
        codes = _codes(np.array([colour for _, colour in labelled], np.uint8))
        ids = np.array([label for label, _ in labelled], np.int16)
        order = np.argsort(codes)
        wanted = _codes(colours)
        place = order[np.searchsorted(codes[order], wanted).clip(max=len(codes) - 1)]
        return np.where(codes[place] == wanted, ids[place], np.int16(_NO_CLASS))

    def by_grey(self, colours: UInt8[np.ndarray, "n 3"]) -> Int16[np.ndarray, "n"]:
        """Ids of grey colours whose value is an id; `_NO_CLASS` for any other colour."""
        value = colours[:, 0]
        grey = (colours == value[:, None]).all(axis=1) & self.is_id(value)
        return np.where(grey, value.astype(np.int16), np.int16(_NO_CLASS))

    def ids_from_colours(self, rgb: UInt8[np.ndarray, "h w 3"]) -> tuple[np.ndarray, bool]:
        """Ids, and whether the file encodes id numbers rather than class colours."""
        codes = self.colours_of(rgb)
        counts = np.zeros(len(codes), np.int64)
        for block in _blocks(rgb):
            counts += np.bincount(
                np.searchsorted(codes, _codes(block)).ravel(), minlength=len(codes)
            )
        colours = _colours(codes)
        readings = {
            OWN: self.by_colour(colours, self.classes.colours),
            VOC: self.by_colour(colours, _voc_colours(len(self.classes))),
            GREY: self.by_grey(colours),
        }
        complete = {what: ids for what, ids in readings.items() if (ids != _NO_CLASS).all()}
        if OWN in complete and VOC in complete and (complete[OWN] != complete[VOC]).any():
            x, y = self.first_of(rgb, codes[complete[OWN] != complete[VOC]])
            raise InputError(
                f"mask {self.path} is ambiguous at pixel ({x}, {y}): its colours are those of the "
                "data set and those of PASCAL VOC; save it as greyscale ids"
            )
        if complete:
            what, ids = next(iter(complete.items()))
            return self.look_up(rgb, codes, ids.astype(np.uint8)), what != OWN
        if self.nearest is None:
            self.refuse_colours(rgb, colours, codes, readings[OWN])
        what = max((OWN, VOC), key=lambda one: counts[readings[one] != _NO_CLASS].sum())
        self.share = float(counts[readings[what] == _NO_CLASS].sum() / counts.sum())
        return self.nearest_ids(rgb, colours, codes, readings[what], what), what != OWN

    def colours_of(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt32[np.ndarray, "n"]:
        """All colours, as sorted codes.

        Raises:
          InputError: there are more than MOST_COLOURS.
        """
        codes = np.zeros(0, np.uint32)
        for block in _blocks(rgb):
            codes = np.union1d(codes, _codes(block))
            if len(codes) > MOST_COLOURS:
                raise InputError(
                    f"mask {self.path} has more than {MOST_COLOURS:,} colours: it is a photograph, "
                    "not a label map"
                )
        return codes

    def look_up(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        codes: UInt32[np.ndarray, "n"],
        table: np.ndarray,
    ) -> np.ndarray:
        """The entry of `table` for each pixel's colour; `table` follows the sorted `codes`."""
        return np.concatenate(
            [table[np.searchsorted(codes, _codes(block))] for block in _blocks(rgb)]
        )

    def first_of(
        self, rgb: UInt8[np.ndarray, "h w 3"], codes: UInt32[np.ndarray, "n"]
    ) -> tuple[int, int]:
        """(x, y) of the first pixel of one of these colours."""
        row = 0
        for block in _blocks(rgb):
            inside = np.isin(_codes(block), codes)
            if inside.any():
                x, y = _first_pixel(inside)
                return x, y + row
            row += len(block)
        raise AssertionError("no pixel has these colours")

    def refuse_colours(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        colours: UInt8[np.ndarray, "n 3"],
        codes: UInt32[np.ndarray, "n"],
        ids: Int16[np.ndarray, "n"],
    ) -> None:
        """Raises InputError for the first pixel whose colour is no class colour."""
        greys = sum(len(set(colour)) == 1 for colour in self.classes.colours)
        if greys < 2 and (colours == colours[:, :1]).all():
            value = int(colours[~self.is_id(colours[:, 0])][0, 0])
            x, y = self.first_of(rgb, _codes(np.full((1, 3), value, np.uint8)))
            raise InputError(
                f"mask {self.path} is grey saved as RGB and holds the value {value} at pixel "
                f"({x}, {y}), which is no class id (0 to {len(self.classes) - 1}) and no class "
                f"colour: number its classes as {_known(self.classes)} are"
            )
        x, y = self.first_of(rgb, codes[ids == _NO_CLASS])
        colour = tuple(map(int, rgb[y, x]))
        distances = np.sum((np.array(self.classes.colours) - colour) ** 2, axis=1)
        nearest = int(np.argmin(distances))
        raise InputError(
            f"mask {self.path} has the colour {colour} at pixel ({x}, {y}), which is no class "
            f"colour (the nearest is {self.classes.names[nearest]}, "
            f"{self.classes.colours[nearest]}): paint with the exact colours of "
            f"{_known(self.classes)} and without soft edges, or take the nearest within a distance "
            "by --nearest-colour"
        )

    def nearest_ids(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        colours: UInt8[np.ndarray, "n 3"],
        codes: UInt32[np.ndarray, "n"],
        ids: Int16[np.ndarray, "n"],
        what: str,
    ) -> UInt8[np.ndarray, "h w"]:
        """The label of every pixel: from `ids` for class colours, otherwise the nearest class.

        Raises:
          InputError: a colour is farther away than is allowed.
        """
        known = np.full((256, 3), np.inf, np.float32)
        own = self.classes.colours if what == OWN else _voc_colours(len(self.classes))
        known[: len(own)] = own
        best, least = np.zeros(len(colours), np.int16), np.full(len(colours), np.inf, np.float32)
        for label, colour in enumerate(known[: len(own)]):
            distance = np.linalg.norm(colours - colour, axis=1)
            nearer = distance < least
            best[nearer], least[nearer] = label, distance[nearer]
        if self.allow_unlabelled and UNLABELLED_COLOUR not in own:
            known[UNLABELLED] = UNLABELLED_COLOUR
        exact = ids != _NO_CLASS
        labels = self.look_up(rgb, codes, np.where(exact, ids, best).astype(np.uint8))
        sure = self.look_up(rgb, codes, exact | (least <= min(soft_edges.SURE, self.nearest)))
        certain = soft_edges.certain(labels, sure)
        unsure = certain.size - np.count_nonzero(certain)
        if unsure > MOST_UNSURE:
            raise InputError(
                f"mask {self.path} has {unsure:,} pixels in no area of a class colour, more than "
                f"the limit of {MOST_UNSURE:,}: check that it is a label map"
            )
        settled = soft_edges.settle(rgb, labels, sure, certain, known)
        # No class around is close enough; the right one may have no certain area, so try all.
        alone = settled.distances > self.nearest
        y, x = settled.y[alone], settled.x[alone]
        far = self.look_up(rgb, codes, np.where(exact, 0, least))[y, x] > self.nearest
        if far.any():
            y, x = y[far][0], x[far][0]
            place = np.searchsorted(codes, _codes(rgb[y, x][None]))[0]
            raise InputError(
                f"mask {self.path} has the colour {tuple(map(int, rgb[y, x]))} at pixel ({x}, "
                f"{y}), which is {least[place]:.0f} away from the nearest class colour (that of "
                f"{self.classes.names[best[place]]}), where --nearest-colour allows "
                f"{self.nearest:g}: allow more, or paint the mask again"
            )
        y, x, taken = settled.y[~alone], settled.x[~alone], settled.labels[~alone]
        exact = self.look_up(rgb, codes, exact)[y, x]
        self.share += float(np.count_nonzero(exact & (labels[y, x] != taken)) / labels.size)
        labels[y, x] = taken
        return labels

    def ids_from_indices(self, indices: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, bool]:
        """Ids, from indices or their palette colours, and whether the file encodes id numbers."""
        used = np.unique(indices)
        if used[-1] >= len(palette):
            return indices, True
        own = self.by_colour(palette[used], self.classes.colours)
        if self.nearest is not None and (own == _NO_CLASS).any():
            return self.ids_from_colours(palette[indices])
        voc = self.by_colour(palette[used], _voc_colours(len(self.classes)))
        for ids, whose in ((own, "class"), (voc, "PASCAL VOC's class")):
            # A palette with one colour for several ids (such as all black) does not encode classes.
            if (ids == _NO_CLASS).any() or len(np.unique(ids)) < len(used):
                continue
            if self.is_id(used).all() and (ids != used).any():
                if ids is voc and (ids != used).sum() == 1:  # equals a VOC colour by chance
                    return indices, True
                self.refuse_palette(indices, used, ids, whose)
            lookup = np.zeros(256, np.uint8)
            lookup[used] = ids
            return lookup[indices], ids is voc
        # Most of the picture has class colours in another order: its palette was rebuilt.
        moved = (own != _NO_CLASS) & (own != used)
        share = np.bincount(indices.reshape(-1), minlength=256)[used][moved].sum() / indices.size
        if self.is_id(used).all() and len(np.unique(own[moved])) > 1 and share > 0.5:
            self.refuse_palette(indices, used, np.where(moved, own, used), "class")
        return indices, True

    def refuse_palette(
        self, indices: np.ndarray, used: np.ndarray, classes: np.ndarray, whose: str
    ) -> None:
        """Raises InputError at the first pixel whose index and colour mean different classes."""
        first = int(np.argmax(classes != used))
        x, y = _first_pixel(indices == used[first])
        raise InputError(
            f"mask {self.path} is ambiguous at pixel ({x}, {y}): palette index {used[first]} has "
            f"the colour of {whose} {classes[first]}; save it as greyscale ids or as RGB"
        )


def _known(classes: ClassSet) -> str:
    if classes == CELEBAMASK:
        return "sisma_jax.data.classes.CELEBAMASK"
    return f"the data set's classes ({', '.join(classes.names[:4])}, ...)"
