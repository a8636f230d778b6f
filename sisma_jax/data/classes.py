"""Class sets of label maps, and the nineteen classes of CelebAMask-HQ.

In CelebAMask-HQ the index of a name is its class id and also its place in the merge order: part
masks are painted from 1 to 18 and a later class overwrites an earlier one. `l_` and `r_` are the
subject's left and right, so `l_eye` lies on the viewer's right.

Source: Lee et al., "MaskGAN: Towards Diverse and Interactive Facial Image Manipulation", CVPR 2020,
and the scripts of its CelebAMask-HQ repository.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import refuse_lfs_pointer
from sisma_jax.data.class_names import CANONICAL

UNLABELLED: int = 255
"""Label of a pixel without a class; losses and metrics leave such pixels out."""

UNLABELLED_COLOUR = (128, 128, 128)


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """Classes by id. Two sets with the same names, colours and pairs are equal."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """RGB in 0..255, all different."""
    flip_pairs: tuple[tuple[int, int], ...] = ()
    """Ids that trade places when an image is mirrored."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= UNLABELLED:
            raise InputError(f"{len(self.names)} classes: have 1 to {UNLABELLED}")
        for what, values in (("name", self.names), ("colour", self.colours)):
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise InputError(f"two classes have the {what} {twice[0]!r}: change one")
        if len(self.colours) != len(self.names):
            raise InputError(
                f"{len(self.names)} classes have {len(self.colours)} colours: give each one"
            )
        for colour in self.colours:
            if not all(0 <= value <= 255 for value in colour):
                raise InputError(f"the colour {colour} is not three numbers 0..255 (RGB)")
        paired = [label for pair in self.flip_pairs for label in pair]
        if len(set(paired)) < len(paired) or any(len(pair) != 2 for pair in self.flip_pairs):
            raise InputError(f"flip pairs {self.flip_pairs} share a class: pair each once at most")
        if not all(0 <= label < len(self.names) for label in paired):
            raise InputError(f"flip pairs {self.flip_pairs} name a class that does not exist")

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def shown(self) -> UInt8[np.ndarray, "256 3"]:
        """RGB colour by label; grey for labels that are not a class."""
        colours = np.full((256, 3), UNLABELLED_COLOUR, np.uint8)
        colours[: len(self)] = self.colours
        return colours

    @functools.cached_property
    def mirrored(self) -> UInt8[np.ndarray, "256"]:
        """Label in the mirrored image, by label."""
        labels = np.arange(256, dtype=np.uint8)
        for a, b in self.flip_pairs:
            labels[[a, b]] = b, a
        return labels

    def shares(self, counts: Int[np.ndarray, "256"]) -> tuple[dict[str, float], float]:
        """Return the share of all pixels by class name, and that of unlabelled pixels.

        Args:
          counts: pixels by label.
        """
        share = counts / max(counts.sum(), 1)
        known = share[: len(self)].tolist()
        return dict(zip(self.names, known, strict=True)), float(share[UNLABELLED])

    def to_json(self) -> dict[str, Any]:
        """The form that `from_json` reads."""
        return {
            "classes": [
                {"name": name, "color": list(colour)}
                for name, colour in zip(self.names, self.colours, strict=True)
            ],
            "flip_pairs": [[self.names[a], self.names[b]] for a, b in self.flip_pairs],
        }

    @classmethod
    def from_json(cls, value: Any) -> "ClassSet":
        """Read classes in the order of their ids, with flip pairs by name.

        Raises:
          InputError: it does not have the form that `to_json` writes.
        """
        try:
            names = tuple(str(one["name"]) for one in value["classes"])
            colours = tuple(tuple(one["color"]) for one in value["classes"])
            named = [(str(a), str(b)) for a, b in value.get("flip_pairs", [])]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                'a list of classes reads {"classes": [{"name": "sky", "color": [0, 0, 255]}, ...], '
                '"flip_pairs": [["left", "right"], ...]}'
            ) from None
        for colour in colours:
            if len(colour) != 3 or not all(type(x) is int for x in colour):
                raise InputError(f"the colour {colour} is not three whole numbers 0..255 (RGB)")
        for name in (name for pair in named for name in pair):
            if name not in names:
                raise InputError(f"flip pairs name {name!r}, which is no class")
        pairs = tuple((names.index(a), names.index(b)) for a, b in named)
        return cls(names, colours, pairs)

    @classmethod
    def read(cls, path: Path | str) -> "ClassSet":
        """Read a JSON file of classes.

        Raises:
          InputError: the file is missing or no list of classes; the message names it.
        """
        try:
            # From bytes json detects the encoding; some editors write a byte-order mark.
            return cls.from_json(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise InputError(
                f"class list {path} cannot be read ({error.strerror}): give a JSON file"
            ) from error
        except ValueError as error:  # InputError is one
            refuse_lfs_pointer(path)
            reason = str(error) if isinstance(error, InputError) else f"no JSON: {error}"
            raise InputError(f"class list {path} cannot be used: {reason}") from error


CLASSES: tuple[str, ...] = CANONICAL
"""`CLASSES[i]` names id `i`; `eye_g` is glasses, `ear_r` an earring, `neck_l` a necklace."""

PALETTE: np.ndarray = np.array(
    [
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (0, 255, 255),
        (255, 204, 204),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ],
    dtype=np.uint8,
)
"""RGB colours by class id, uint8 (19, 3), read-only: those of the data set's own figures."""
PALETTE.setflags(write=False)

FLIP_PAIRS: tuple[tuple[int, int], ...] = ((4, 5), (6, 7), (8, 9))
"""Class ids that trade places when an image is mirrored: eyes, brows, ears."""

CELEBAMASK = ClassSet(
    CLASSES, tuple(tuple(int(value) for value in colour) for colour in PALETTE), FLIP_PAIRS
)
"""CelebAMask-HQ's classes, colours and flip pairs."""
