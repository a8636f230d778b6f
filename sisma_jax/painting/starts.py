"""Starting masks of the page, and the faces that they belong to, if any."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.config import section
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import Source
from sisma_jax.runs.folder import RunFolder

PROCEDURAL = 512
"""Number of procedural faces to choose from if there is no data set."""
_SEED = 1
"""Seed of procedural faces; the data sets that configs write have seed 0."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A mask, and the face that it belongs to."""

    labels: UInt8[np.ndarray, "h w"]
    photo: UInt8[np.ndarray, "h w 3"] | None


@dataclasses.dataclass(frozen=True)
class Starts:
    """The starting masks to choose from."""

    origin: str
    """Description of where they come from."""
    count: int
    read: Callable[[int], Subject]
    """Function from a number in 0 to count - 1 to the mask."""


def find_starts(run: RunFolder, classes: ClassSet, size: int) -> Starts:
    """The test split of the run's data set; if that is not available, procedural faces if they have
    the run's classes, otherwise a mask of one class.

    Args:
      run: the run folder, or an export.
      classes, size: of its label maps.
    """
    data = section(DataConfig, run.config(), "data")
    try:
        source = data.open("test", ("image", "labels"))
        if source.classes != classes:
            raise InputError(f"{data.path} now has other classes than the run")
    except InputError as error:
        why = str(error)
    else:
        return Starts(f"test split of {data.path}", len(source), lambda i: _item(source, i))
    if classes == CELEBAMASK:
        return Starts(
            f"procedural faces, since the run's data set is not available ({why})",
            PROCEDURAL,
            lambda i: Subject(*reversed(synthetic.face(_SEED, i, size))),
        )
    blank = np.zeros((size, size), np.uint8)
    return Starts(
        f"one class everywhere, since the run's data set is not available ({why})",
        1,
        lambda _: Subject(blank, None),
    )


def _item(source: Source, index: int) -> Subject:
    item = source[index]
    return Subject(item["labels"], item["image"])
