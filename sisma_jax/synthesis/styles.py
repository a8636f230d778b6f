"""Styles of reference faces: encode, combine and interpolate.

    style = synthesizer.style(images, labels)             # one per face, class by class
    style.take(other, ["hair"])                           # hair from another
    style.without(["cloth"])                              # clothes from noise
    style.blend(other, 0.5)                               # halfway
    faces = synthesizer(masks, style=style)

A style has a token per class (`models.layers.style_encoder`). A class that the reference does not
show has no style; the model draws it from noise. A style fits only the model that made it.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Array, Bool, Float32

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import ClassSet


@dataclasses.dataclass(frozen=True)
class Style:
    """Styles of n faces; arrays are never changed in place."""

    tokens: Float32[np.ndarray, "n k token"]
    given: Bool[np.ndarray, "n k"]
    """Which classes the reference shows."""
    absent: Float32[np.ndarray, "k token"]
    """The tokens of classes without a style."""
    classes: ClassSet

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(
        self, rows: int | np.integer | slice | list[int] | tuple[int, ...] | np.ndarray | Array
    ) -> "Style":
        """Styles of some faces; an integer gives n = 1."""
        if isinstance(rows, tuple):  # which NumPy would take as one index per axis
            rows = list(rows)
        if not isinstance(rows, slice) and np.ndim(rows) == 0:
            rows = [rows]
        return dataclasses.replace(self, tokens=self.tokens[rows], given=self.given[rows])

    def repeat(self, count: int) -> "Style":
        """Repeat each style `count` times in a row."""
        again = lambda x: np.repeat(x, count, axis=0)
        return dataclasses.replace(self, tokens=again(self.tokens), given=again(self.given))

    def take(self, other: "Style", names: Iterable[str]) -> "Style":
        """Take the classes `names` from `other`, the rest from here; each has 1 or n styles.

        Raises:
          InputError: if a name is no class, or the two do not go together.
        """
        chosen = self._chosen(names)[None]
        a, b = self._paired(other)
        return dataclasses.replace(
            self,
            tokens=np.where(chosen[..., None], b.tokens, a.tokens),
            given=np.where(chosen, b.given, a.given),
        )

    def without(self, names: Iterable[str]) -> "Style":
        """Leave the classes `names` to noise.

        Raises:
          InputError: if a name is no class.
        """
        removed = self._chosen(names)[None]
        return dataclasses.replace(
            self,
            tokens=np.where(removed[..., None], self.absent[None], self.tokens),
            given=self.given & ~removed,
        )

    def only(self, names: Iterable[str]) -> "Style":
        """Keep the classes `names` and leave the rest to noise.

        Raises:
          InputError: if a name is no class.
        """
        chosen = self._chosen(names)
        return self.without(
            name for name, kept in zip(self.classes.names, chosen, strict=True) if not kept
        )

    def blend(self, other: "Style", share: float, names: Iterable[str] | None = None) -> "Style":
        """Interpolate tokens linearly from here (share 0) to `other` (share 1).

        Args:
          other: as many styles; either may be a single one.
          share: weight of `other`, in [0, 1].
          names: classes to interpolate where both references show them; None for all.

        Raises:
          InputError: if a name is no class, the share is not in [0, 1], or the two do not go
            together.
        """
        if not 0 <= share <= 1:
            raise InputError(f"a share of {share} is not between two styles: use 0 to 1")
        chosen = self._chosen(self.classes.names if names is None else names)[None]
        a, b = self._paired(other)
        between = (1 - share) * a.tokens + share * b.tokens
        changed = (chosen & a.given & b.given)[..., None]
        return dataclasses.replace(
            a, tokens=np.where(changed, between, a.tokens).astype(np.float32)
        )

    def missing(self, row: int = 0) -> list[str]:
        """The classes that reference `row` does not show."""
        return [
            name
            for name, given in zip(self.classes.names, self.given[row], strict=True)
            if not given
        ]

    def _chosen(self, names: Iterable[str]) -> Bool[np.ndarray, " k"]:
        return chosen_classes(self.classes, names)

    def _paired(self, other: "Style") -> tuple["Style", "Style"]:
        if self.classes != other.classes or self.absent.shape != other.absent.shape:
            raise InputError("two styles are of different models: make both with one")
        if not np.array_equal(self.absent, other.absent):
            raise InputError("two styles are of different weights: make both with one model")
        count = max(len(self), len(other))
        a, b = (x.repeat(count) if len(x) == 1 else x for x in (self, other))
        if len(a) != len(b):
            raise InputError(
                f"{len(self)} styles and {len(other)} do not go together: use as many, or one"
            )
        return a, b


def chosen_classes(classes: ClassSet, names: Iterable[str]) -> Bool[np.ndarray, " k"]:
    """Which classes are among `names`.

    Raises:
      InputError: if a name is no class.
    """
    names = list(names)
    for name in names:
        if name not in classes.names:
            raise InputError(f"{name!r} is no class: use some of {', '.join(classes.names)}")
    return np.isin(classes.names, names)
