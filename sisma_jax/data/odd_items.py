"""Items of a data set that look wrong: odd labels, odd pictures, and near-duplicates.

Each item is judged by itself, from the areas and positions of its classes and from its grey levels;
positions and distances are in units of the face's size, the square root of its area, so that they
hold at every image size. Near-duplicates are pairs whose `thumbnails` differ little, also if one of
them is mirrored. Kinds that concern parts of the face are judged if the data set's classes have
CelebAMask-HQ's names of these parts. What is found is unusual, and not always wrong: a closed eye
has no label.

All thresholds are our choice, made on a 5,000 + 1,000 subset of CelebAMask-HQ at 64 pixels.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from sisma_jax.common.progress import bar
from sisma_jax.data.classes import UNLABELLED, ClassSet
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.thumbnails import shrunk

UNLABELLED_SHARE = 0.05
"""Share of an item's pixels without a class; in the subset every pixel has one."""
WRONG_SIDE = 0.1
"""Distance beyond the nose at which a part is on the wrong side; parts of faces turned aside lie
beyond its centre by less."""
FAR = 0.7
"""Distance of a piece of an eye, brow or mouth from the nose; the centres of 99.9 % of the
brows, which lie farthest, are nearer than 0.63."""
PROFILE = 0.24
"""Distance of the nose from the middle of the skin, sideways, in a profile; the median of all faces
is 0.06, and 5 % exceed it."""
PIECES = 4
"""Connected pieces of an eye, brow, nose, mouth or lip; 99 % have at most three."""
TINY = 0.0005
"""Share of the picture of a part that is almost lost: two pixels of 64 x 64."""
DARK, BRIGHT = 0.18, 0.75
"""Mean luma, of 1, beyond which half a percent of photographs lie on either side."""
FLAT = 0.4
"""Difference of the 95th and the 5th percentile of luma; the median is about 0.74."""
GREY = 0.15
"""99th percentile of the difference of the largest and the smallest channel; the median is 0.4."""
NEAR = 0.05
"""Root mean square difference of thumbnails; the subset has 14 pairs within 0.047, copies where
looked at, and the next pair is 0.069 apart."""

_SHOWN = 6
"""Ids that a line of `summary` names."""
_ROWS = 512
"""Thumbnails that are compared with all others at a time, which bounds the memory."""
_CHUNK = 64
"""Items between two updates of the progress."""

_EYES, _BROWS = ("l_eye", "r_eye"), ("l_brow", "r_brow")
_LIPS = ("mouth", "u_lip", "l_lip")
_COMPACT = ("nose", *_EYES, *_BROWS, *_LIPS)
"""Parts that lie in one place of the face."""
_FACE = ("skin", "eye_g", *_COMPACT)
_HEAD = (*_FACE, "l_ear", "r_ear", "neck")
_PAIRS = (_EYES, _BROWS, ("l_ear", "r_ear"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is looked for."""

    meaning: str
    needs: tuple[str, ...] = ()
    """Classes without which it cannot be judged."""


KINDS: dict[str, Kind] = {
    "unlabelled": Kind(f"more than {UNLABELLED_SHARE:.0%} of the pixels have no class"),
    "one class": Kind("all labelled pixels have one class, or none has a class"),
    "no skin": Kind("no pixel of skin", ("skin",)),
    "no nose": Kind("skin, but no nose", ("skin", "nose")),
    "no eyes": Kind("no eye and no glasses: closed, covered, or not labelled", (*_EYES, "eye_g")),
    "one eye": Kind("one eye, no glasses, no profile: winking, covered, or not labelled", _FACE),
    "profile": Kind("one eye, no glasses, the nose far to one side: no error", _FACE),
    "no mouth": Kind("no mouth and no lip: pressed, covered, or not labelled", _LIPS),
    "exchanged": Kind(
        "a left part on the side of the right one (l_ lies on the viewer's right)",
        (*_FACE, "l_ear", "r_ear"),
    ),
    "misplaced": Kind(
        "an eye below the nose, a brow below its eye, a mouth above the nose, the upper lip below "
        "the lower",
        _COMPACT,
    ),
    "far piece": Kind("a piece of an eye, brow, mouth or lip far from the nose", _FACE),
    "loose hair": Kind("hair without contact to head or hat", (*_HEAD, "hair", "hat")),
    "pieces": Kind(f"an eye, brow, nose, mouth or lip in {PIECES} pieces or more", _COMPACT),
    "tiny part": Kind("a part of the face that is almost lost at this size", _COMPACT),
    "dark": Kind(f"mean luma below {DARK}"),
    "bright": Kind(f"mean luma above {BRIGHT}"),
    "flat": Kind(f"luma from the 5th to the 95th percentile spans less than {FLAT}"),
    "grey": Kind("almost no colour"),
}
"""Kinds by name, except near-duplicates, which are pairs."""


class _Parts:
    """Areas in pixels, centres in pixels and pieces of the classes of a label map, by name."""

    def __init__(self, labels: UInt8[np.ndarray, "h w"], classes: ClassSet):
        self._labels, self._ids = labels, {name: i for i, name in enumerate(classes.names)}
        flat = labels.ravel()
        self.count = np.bincount(flat, minlength=256)
        rows, columns = np.indices(labels.shape, np.float32)
        area = np.maximum(self.count, 1)
        self._y = np.bincount(flat, rows.ravel(), 256) / area
        self._x = np.bincount(flat, columns.ravel(), 256) / area
        self.unit = np.inf
        """Size of the face; infinite without skin, so that nothing counts as far then."""
        if "skin" in self._ids and self.has("skin"):
            areas = [self.area(name) for name in _FACE if name in self._ids]
            self.unit = float(np.sqrt(sum(areas)))

    def area(self, name: str) -> int:
        return int(self.count[self._ids[name]])

    def has(self, *names: str) -> bool:
        return all(self.area(name) for name in names)

    def x(self, name: str) -> float:
        return float(self._x[self._ids[name]])

    def y(self, name: str) -> float:
        return float(self._y[self._ids[name]])

    def pieces(self, name: str) -> list[tuple[float, float]]:
        """Centres (y, x) of the connected pieces of a class."""
        own = self._labels == self._ids[name]
        box = ndimage.find_objects(own.view(np.uint8), 1)[0]
        if box is None:
            return []
        pieces, count = ndimage.label(own[box], np.ones((3, 3)))
        centres = ndimage.center_of_mass(own[box], pieces, range(1, count + 1))
        return [(y + box[0].start, x + box[1].start) for y, x in centres]

    def touch(self, name: str, others: tuple[str, ...]) -> bool:
        """Whether a pixel of a class is beside one of other classes."""
        own = self._labels == self._ids[name]
        others = np.isin(self._labels, [self._ids[other] for other in others])
        down = (own[1:] & others[:-1]) | (own[:-1] & others[1:])
        across = (own[:, 1:] & others[:, :-1]) | (own[:, :-1] & others[:, 1:])
        return bool(down.any() or across.any())


def judged(classes: ClassSet) -> list[str]:
    """Names of the kinds that can be judged with these classes."""
    return [name for name, kind in KINDS.items() if set(kind.needs) <= set(classes.names)]


def of_labels(labels: UInt8[np.ndarray, "h w"], classes: ClassSet) -> list[str]:
    """The kinds of `KINDS` that a label map belongs to, in their order."""
    parts = _Parts(labels, classes)
    found = {
        "unlabelled": parts.count[UNLABELLED] > UNLABELLED_SHARE * labels.size,
        "one class": np.count_nonzero(parts.count[: len(classes)]) < 2,
    }
    known = set(judged(classes))
    for name, test in _TESTS.items():
        if name in known:
            found[name] = test(parts)
    return [name for name in KINDS if found.get(name)]


def _one_eye(parts: _Parts) -> bool:
    return sum(map(parts.has, _EYES)) == 1 and not parts.has("eye_g")


def _aside(parts: _Parts) -> bool:
    """Whether the nose lies as far to one side as in a profile."""
    if not parts.has("nose", "skin"):
        return False
    return abs(parts.x("nose") - parts.x("skin")) > PROFILE * parts.unit


def _exchanged(parts: _Parts) -> bool:
    for left, right in _PAIRS:
        if parts.has(left, right) and parts.x(left) < parts.x(right):
            return True
        for name, side in ((left, 1), (right, -1)):
            if parts.has(name, "nose"):
                beyond = side * (parts.x("nose") - parts.x(name))
                if beyond > WRONG_SIDE * parts.unit:
                    return True
    return False


def _misplaced(parts: _Parts) -> bool:
    above = [*((eye, "nose") for eye in _EYES), *zip(_BROWS, _EYES, strict=True)]
    above += [*(("nose", lip) for lip in _LIPS), ("u_lip", "l_lip")]
    return any(
        parts.has(upper, lower) and parts.y(upper) >= parts.y(lower) for upper, lower in above
    )


def _far_piece(parts: _Parts) -> bool:
    if not parts.has("nose"):
        return False
    y, x, limit = parts.y("nose"), parts.x("nose"), FAR * parts.unit
    return any(
        np.hypot(piece[0] - y, piece[1] - x) > limit
        for name in _COMPACT
        for piece in parts.pieces(name)
    )


def _tiny(parts: _Parts) -> bool:
    limit = TINY * parts.count.sum()
    return any(0 < parts.area(name) <= limit for name in _COMPACT)


_TESTS = {
    "no skin": lambda parts: not parts.has("skin"),
    "no nose": lambda parts: parts.has("skin") and not parts.has("nose"),
    "no eyes": lambda parts: not any(map(parts.has, (*_EYES, "eye_g"))),
    "one eye": lambda parts: _one_eye(parts) and not _aside(parts),
    "profile": lambda parts: _one_eye(parts) and _aside(parts),
    "no mouth": lambda parts: not any(map(parts.has, _LIPS)),
    "exchanged": _exchanged,
    "misplaced": _misplaced,
    "far piece": _far_piece,
    "loose hair": lambda parts: parts.has("hair") and not parts.touch("hair", (*_HEAD, "hat")),
    "pieces": lambda parts: any(len(parts.pieces(name)) >= PIECES for name in _COMPACT),
    "tiny part": _tiny,
}


def of_picture(image: UInt8[np.ndarray, "h w 3"]) -> list[str]:
    """The kinds of `KINDS` that a picture belongs to, in their order."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    low, high = np.quantile(luma, (0.05, 0.95))
    colour = np.quantile(image.max(-1) - image.min(-1), 0.99) / 255
    mean = luma.mean()
    found = {
        "dark": mean < DARK,
        "bright": mean > BRIGHT,
        "flat": high - low < FLAT,
        "grey": colour < GREY,
    }
    return [name for name, hit in found.items() if hit]


def near_duplicates(
    thumbnails: Float32[np.ndarray, "n d"], mirrored: Float32[np.ndarray, "n d"]
) -> list[tuple[int, int, bool, float]]:
    """Pairs of pictures that are at most `NEAR` apart.

    Args:
      thumbnails: result of `thumbnails.shrunk`.
      mirrored: that of the mirrored pictures.

    Returns:
      (index, larger index, whether one is mirrored, distance), the nearest first; the nearer of the
      two distances.
    """
    best: dict[tuple[int, int], tuple[bool, float]] = {}
    squares = np.sum(thumbnails**2, axis=1)
    with bar(total=len(thumbnails), unit="item", desc="comparing", leave=False) as progress:
        for start in range(0, len(thumbnails), _ROWS):
            rows = thumbnails[start : start + _ROWS]
            for mirror, others in ((False, thumbnails), (True, mirrored)):
                # Later items only: a mirrored distance is the same in both directions.
                products = rows @ others[start:].T
                apart = squares[start : start + _ROWS, None] + squares[None, start:] - 2 * products
                # The difference of large numbers selects generously; the distance is exact.
                near = np.argwhere(apart < thumbnails.shape[1] * (1.1 * NEAR) ** 2)
                for a, b in near[near[:, 0] < near[:, 1]] + start:
                    apart = thumbnails[a] - others[b]
                    distance = float(np.sqrt(np.mean(apart**2)))
                    pair = int(a), int(b)
                    if distance <= NEAR and distance < best.get(pair, (False, np.inf))[1]:
                        best[pair] = mirror, distance
            progress.update(len(rows))
    pairs = [(*pair, *how) for pair, how in best.items()]
    return sorted(pairs, key=lambda pair: pair[3])


def examine(sources: Mapping[str, Source]) -> dict[str, Any]:
    """Examine all items of the splits, which share their classes and size.

    Returns:
      For JSON: "items", their number by split; "kinds", by kind the ids by split, for those of
      `KINDS` that can be judged; "not_judged", the other kinds and the classes that are missing;
      "near_duplicates", a list of {"items": two (split, id), "mirrored", "distance"}.
    """
    classes = next(iter(sources.values())).classes
    names = judged(classes)
    kinds: dict[str, dict[str, list[str]]] = {
        name: {split: [] for split in sources} for name in names
    }
    items, seen, turned = [], [], []
    total = sum(map(len, sources.values()))
    with bar(total=total, unit="item", desc="examining", leave=False) as progress:
        for split, source in sources.items():
            for chunk in _chunks(len(source)):
                read = [source[index] for index in chunk]
                images = np.stack([item["image"] for item in read])
                seen.append(shrunk(images))
                turned.append(shrunk(images[:, :, ::-1]))
                for index, item in zip(chunk, read, strict=True):
                    id = str(source.ids[index])
                    items.append((split, id))
                    for name in of_labels(item["labels"], classes) + of_picture(item["image"]):
                        kinds[name][split].append(id)
                progress.update(len(chunk))
    pairs = near_duplicates(np.concatenate(seen), np.concatenate(turned))
    return {
        "items": {split: len(source) for split, source in sources.items()},
        "kinds": kinds,
        "not_judged": {
            name: sorted(set(kind.needs) - set(classes.names))
            for name, kind in KINDS.items()
            if name not in names
        },
        "near_duplicates": [
            {"items": [items[a], items[b]], "mirrored": mirror, "distance": round(distance, 4)}
            for a, b, mirror, distance in pairs
        ],
    }


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _CHUNK):
        yield range(start, min(start + _CHUNK, count))


def summary(found: dict[str, Any]) -> list[str]:
    """Lines of text on the result of `examine`: counts and the first ids of each kind."""
    lines = []
    for name, ids in found["kinds"].items():
        named = [f"{split}/{id}" for split, some in ids.items() for id in some]
        lines.append(_line(name, named, KINDS[name].meaning))
    pairs = found["near_duplicates"]
    named = ["=".join("/".join(item) for item in pair["items"]) for pair in pairs]
    lines.append(_line("near-duplicates", named, "pairs of pictures that hardly differ"))
    if found["not_judged"]:
        missing = sorted({name for names in found["not_judged"].values() for name in names})
        lines.append(
            f"not judged: {', '.join(found['not_judged'])} (the data set lacks the classes "
            f"{', '.join(missing)})"
        )
    return lines


def _line(name: str, named: list[str], meaning: str) -> str:
    more = ", ..." if len(named) > _SHOWN else ""
    first = f": {', '.join(named[:_SHOWN])}{more}" if named else ""
    return f"  {name:16s} {len(named):6d}  {meaning}{first}"
