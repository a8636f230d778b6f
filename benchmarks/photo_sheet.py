"""The picture of photo_bench.py: faces from masks that are not of the data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from sisma_jax import Synthesizer
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.label_maps import collect_masks, flip
from sisma_jax.evaluation.generation import Sampling
from sisma_jax.evaluation.nearest import quantiles
from sisma_jax.evaluation.tables import Table
from sisma_jax.sample import read_masks

SYNTHETIC = "synthetic"
"""The value of --sheet-masks that stands for masks of procedural faces."""


def sheet_masks(
    asked: str, count: int, seed: int, size: int, classes: ClassSet
) -> UInt8[np.ndarray, "n size size"]:
    """The masks of the sheet, from procedural faces or a folder.

    Raises:
      InputError: if procedural faces do not have these classes, or the folder cannot be read.
    """
    if asked != SYNTHETIC:
        return read_masks(collect_masks([Path(asked)])[:count], size, classes=classes)
    if classes != CELEBAMASK:
        raise InputError(
            f"--sheet-masks {SYNTHETIC} has the classes of CelebAMask-HQ, but the model has "
            f"{', '.join(classes.names)}: give a folder of masks"
        )
    return np.stack([synthetic.face(seed, index, size)[1] for index in range(count)])


def refuse_masks_of_data(
    masks: UInt8[np.ndarray, "n h w"], splits: Sequence[Source], classes: ClassSet
) -> None:
    """Raises InputError if a mask, or its mirror image, is one of the data set's."""
    own = {
        one.tobytes(): row for row, mask in enumerate(masks) for one in (mask, flip(mask, classes))
    }
    for split in splits:
        for index in range(len(split)):
            row = own.get(split[index]["labels"].tobytes())
            if row is not None:
                raise InputError(
                    f"mask {row + 1} of --sheet-masks is that of face {split.ids[index]} of the "
                    "data set, nothing of which may be on the sheet: give masks of your own"
                )


def refuse_near_faces(
    distances: Float[np.ndarray, "masks k"], unseen: Float[np.ndarray, " n"]
) -> None:
    """Refuse a sheet with a face that is nearer to a training face than all unseen faces are.

    Args:
      distances: those of the sheet's faces to their nearest training faces.
      unseen: those of the test faces.

    Raises:
      InputError: if there is such a face, or a test face is a training face, so that no face could
        be nearer.
    """
    least = unseen.min()
    if least == 0:
        raise InputError(
            "--sheet is not written: a test face is the same as a training face, so distances of "
            "test faces are no measure; give --data without faces that are in both splits"
        )
    mask, column = np.unravel_index(distances.argmin(), distances.shape)
    if distances[mask, column] < least:
        raise InputError(
            f"--sheet is not written: face {column + 1} of mask {mask + 1} is at a distance of "
            f"{distances[mask, column]:.4f} from its nearest training face, nearer than each of "
            f"{len(unseen)} unseen test faces (at least {least:.4f}), so it may show a training "
            "face; give another --sheet-seed, or --sheet-masks with other masks"
        )


def sheet_faces(
    synthesizer: Synthesizer,
    masks: UInt8[np.ndarray, "n h w"],
    columns: int,
    sampling: Sampling,
) -> UInt8[np.ndarray, "n columns h w 3"]:
    """Faces of each mask, with their own noise."""
    seeds = [
        sampling.seed_of(row, column) for row in range(len(masks)) for column in range(columns)
    ]
    faces = synthesizer.images(np.repeat(masks, columns, axis=0), sampling.options, seed=seeds)
    return faces.reshape(len(masks), columns, *faces.shape[1:])


def sheet_table(distances: Float[np.ndarray, "masks k"], unseen: Float[np.ndarray, " n"]) -> Table:
    """Distance of every face on the sheet to its nearest training face."""
    figures = quantiles(unseen)
    return Table(
        "Distances of the sheet's faces to the nearest training face",
        ["mask", *(f"face {column + 1}" for column in range(distances.shape[1]))],
        [[row + 1, *(f"{x:.3f}" for x in line)] for row, line in enumerate(distances)],
        f"Unseen test faces: 1 % quantile {figures['percent_1']:.3f}, least "
        f"{figures['least']:.3f}.",
    )
