"""Measurements of style transfer: how close colours come, and how local a swap is.

The colour of a class is the mean over its pixels. A colour error is the distance between two such
colours in grey levels (root mean square over channels), averaged over the faces that show the
class. Faces are generated from the same masks and the same noise with each of these sources of
style:

  own style      the style of the face that the mask belongs to: reconstruction
  other style    the style of another face, with which colours are then compared
  noise          no reference
  autoencoder    the real face, encoded and decoded: a lower bound of any model's error

A model that only draws in the style of references has no faces from noise, and one that draws
pixels has no autoencoder.

Locality: in faces in their own style, one class is given the style of another reference. The change
is measured inside the class's region, within a margin around it, and beyond, in grey levels.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sisma_jax.data.contact_sheet import tile
from sisma_jax.data.label_maps import colourise
from sisma_jax.evaluation.generation import Sampling
from sisma_jax.evaluation.pictures import reconstructor
from sisma_jax.evaluation.tables import Cell, Table
from sisma_jax.metrics.regions import class_colours, colour_errors, far_from, rms_change
from sisma_jax.models.generators import generator
from sisma_jax.synthesis.styles import Style
from sisma_jax.synthesis.synthesizer import Synthesizer

FACES = 64
"""Largest number of test faces that are used."""
MARGIN = 8
"""Width in pixels of the margin around a class's region."""
LEAST_SHARE = 0.02
"""Least share of a picture for a class to be swapped; fewer pixels would show nothing."""
SHOWN, PARTS = 6, 4
"""Rows of a sheet, and number of classes, the largest, that are swapped one by one."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of interpolations."""
Faces = UInt8[np.ndarray, "n h w 3"]
Sheet = UInt8[np.ndarray, "H W 3"]
Labels = UInt8[np.ndarray, "n h w"]


def measure_styles(
    synthesizer: Synthesizer, images: Faces, labels: Labels, sampling: Sampling
) -> tuple[dict[str, Any], dict[str, Sheet]]:
    """Make faces with the styles of references and measure them (module docstring).

    Args:
      synthesizer: a model with style conditioning.
      images: at least two faces; each is the reference of its own mask, and of the one before it.
      labels: their masks.
      sampling: options for making faces.

    Returns:
      Figures: "faces", "sampling", "margin"; "colour_errors" by source and class, "colour_faces"
      by class; "locality" by class with "faces", the changes "inside", "near" and "beyond", and the
      colour error towards the other reference, "colour_before" and "colour_after".
      And sheets by caption.
    """
    names = synthesizer.classes.names
    style = synthesizer.style(images, labels)
    following = np.roll(np.arange(len(images)), -1).tolist()
    other = style[following]

    def make(rows: list[int], style: Style | None, sample: int = 0) -> Faces:
        """Make faces of some of the masks, with noise that depends on the mask only.

        Padded to whole batches, since every other number of masks would be compiled again.
        """
        count = -(-len(rows) // synthesizer.batch_size) * synthesizer.batch_size
        filled = [*range(len(rows)), *[0] * (count - len(rows))]
        of_masks = [rows[place] for place in filled]
        return synthesizer.images(
            labels[of_masks],
            sampling.options if style else sampling.options.without_style(),
            seed=[sampling.seed_of(row, sample) for row in of_masks],
            style=style and style[filled],
        )[: len(rows)]

    everyone = list(range(len(images)))
    made = {
        "own style": make(everyone, style),
        "other style": make(everyone, other),
    }
    if synthesizer.draws_styles:
        made["noise"] = make(everyone, None)
    if not generator(synthesizer.config).one_pass:
        made["autoencoder"] = reconstructor(synthesizer.autoencoder)(images)
    colours = {source: class_colours(faces, labels, len(names)) for source, faces in made.items()}
    real = class_colours(images, labels, len(names))
    wanted = dict.fromkeys(made, real) | {"other style": real[following]}
    errors = {source: colour_errors(colours[source], wanted[source]) for source in made}
    by_name = lambda values: dict(zip(names, map(_number, values), strict=True))

    locality = {}
    for k, name in enumerate(names):
        large = np.mean(labels == k, axis=(1, 2)) >= LEAST_SHARE
        rows = np.flatnonzero(large & other.given[:, k]).tolist()
        if not rows:
            continue
        swapped = make(rows, style[rows].take(other[rows], [name]))
        before = made["own style"][rows]
        inside = labels[rows] == k
        beyond = far_from(inside, MARGIN)
        change = lambda where, a=before, b=swapped: rms_change(a, b, where) if where.any() else None
        target = real[following][rows]
        after = class_colours(swapped, labels[rows], len(names))
        locality[name] = {
            "faces": len(rows),
            "inside": change(inside),
            "near": change(~inside & ~beyond),
            "beyond": change(beyond),
            "colour_before": _number(colour_errors(colours["own style"][rows], target)[k]),
            "colour_after": _number(colour_errors(after, target)[k]),
        }
    result = {
        "faces": len(images),
        "sampling": sampling.in_words,
        "margin": MARGIN,
        "colour_errors": {source: by_name(errors[source]) for source in made},
        "colour_faces": dict(zip(names, (~np.isnan(real[..., 0])).sum(0).tolist(), strict=True)),
        "locality": locality,
    }
    return result, Show(make, style, images, labels, made).sheets()


class Show:
    """Sheets that show uses of references."""

    def __init__(
        self,
        make: Callable[..., Faces],
        style: Style,
        images: Faces,
        labels: Labels,
        made: dict[str, Faces],
    ):
        self.make, self.style, self.images, self.made = make, style, images, made
        self.rows = list(range(min(SHOWN, len(images))))
        self.next = [(row + 1) % len(images) for row in self.rows]
        self.masks = colourise(labels[: len(self.rows)], style.classes)
        area = np.bincount(labels.ravel(), minlength=256)[: len(style.classes)]
        largest = np.argsort(-area, kind="stable")[:PARTS]
        self.parts = [style.classes.names[k] for k in largest if area[k]]

    def sheets(self) -> dict[str, Sheet]:
        """Sheets by caption."""
        one = "hair" if "hair" in self.style.classes.names else self.parts[0]
        parts = ", ".join(self.parts)
        sheets = {"reconstruction: mask, reference, a face in its style": self.reconstruction()}
        if "noise" in self.made:
            sheets = {
                "reconstruction: mask, reference, two faces in its style, two without a style":
                    self.reconstruction(),
                f"parts of several: {self.parts[0]} of the second picture, {self.parts[1]} of the "
                "third, the rest by noise": self.several(),
            }  # fmt: skip
        return sheets | {
            "total swap: masks of the left column in the styles of the top row": self.total(),
            f"partial swap: face, reference, then in the reference's style {parts}":
                self.partial(),
            "interpolation from the first face's style to the last's": self.between(None),
            f"interpolation of {one} alone": self.between([one]),
        }  # fmt: skip

    def reconstruction(self) -> Sheet:
        rows, own = self.rows, self.style[self.rows]
        made = [self.made["own style"]]
        if "noise" in self.made:
            again, fresh = self.make(rows, own, 1), self.make(rows, None, 1)
            made += [again, self.made["noise"], fresh]
        return tile([[self.masks[i], self.images[i], *(x[i] for x in made)] for i in rows])

    def total(self) -> Sheet:
        rows = self.rows[:4]
        crossed = [self.make([row] * len(rows), self.style[rows]) for row in rows]
        corner = np.full_like(self.images[0], 255)
        lines = [[self.masks[i], *crossed[i]] for i in rows]
        return tile([[corner, *self.images[rows]], *lines])

    def partial(self) -> Sheet:
        own, other = self.style[self.rows], self.style[self.next]
        columns = [self.make(self.rows, own.take(other, [name])) for name in self.parts]
        return tile(
            [
                [self.made["own style"][i], self.images[j], *(x[i] for x in columns)]
                for i, j in zip(self.rows, self.next, strict=True)
            ]
        )

    def several(self) -> Sheet:
        second, third = self.next, [(row + 1) % len(self.images) for row in self.next]
        mixed = self.style[second].only(self.parts[:1]).take(self.style[third], self.parts[1:2])
        columns = [self.make(self.rows, mixed, sample) for sample in range(3)]
        return tile(
            [
                [self.masks[i], self.images[second[i]], self.images[third[i]]]
                + [x[i] for x in columns]
                for i in self.rows
            ]
        )

    def between(self, names: list[str] | None) -> Sheet:
        rows, other = self.rows[:4], self.style[self.next[:4]]
        columns = [self.make(rows, self.style[rows].blend(other, share, names)) for share in SHARES]
        return tile(
            [[self.images[i], *(x[i] for x in columns), self.images[self.next[i]]] for i in rows]
        )


def style_tables(result: dict[str, Any]) -> list[Table]:
    """Tables of the result of `measure_styles`."""
    errors, locality = result["colour_errors"], result["locality"]
    faces, sources = result["colour_faces"], list(errors)
    how = f"{result['faces']} test faces, {result['sampling']}."
    return [
        Table(
            "Style: colour error by class, grey levels",
            ["class", "faces", *sources],
            [
                [name, count, *(_shown(errors[source][name]) for source in sources)]
                for name, count in faces.items()
                if count
            ],
            f"{how} Other style: towards the colours of the reference.",
        ),
        Table(
            "Style: what changes when one class takes another reference's, grey levels",
            ["class", "faces", "inside", f"within {result['margin']} px", "beyond",
             "colour error before", "after"],
            [
                [name, line["faces"], *(_shown(line[key]) for key in
                    ("inside", "near", "beyond", "colour_before", "colour_after"))]
                for name, line in locality.items()
            ],
            f"{how} Root mean square over pixels; classes of at least {LEAST_SHARE:.0%} of a "
            "picture.",
        ),
    ]  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _shown(value: float | None) -> Cell:
    return None if value is None else f"{value:.1f}"
