"""The training pictures nearest to samples, which show whether a model reproduces training faces.

The distance is the root mean square over the pixels of `data.thumbnails`, as a share of the full
range. It needs no network, and is close to 0 for near-copies. Training also uses mirror images, so
these are compared as well. If samples are nearer to training pictures than unseen real pictures
are, the model may have memorised faces.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from sisma_jax.common.progress import bar
from sisma_jax.data.thumbnails import SIDE, shrunk
from sisma_jax.evaluation.pictures import Pictures, batches
from sisma_jax.evaluation.tables import Table


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Nearest neighbour of each query picture."""

    index: Int64[np.ndarray, " n"]
    """Index of the nearest picture in the set."""
    mirrored: Bool[np.ndarray, " n"]
    """Whether it is that picture's mirror image."""
    distance: Float64[np.ndarray, " n"]


def nearest(queries: Float32[np.ndarray, "n d"], pictures: Pictures) -> Nearest:
    """Find the picture nearest to each query.

    Args:
      queries: pictures as `data.thumbnails.shrunk` returns them, of the same size as `pictures`.
      pictures: the set that is searched.
    """
    # |q - x|^2 = |q|^2 - 2 q x + |x|^2 needs only a matrix product, in float64 because the terms
    # cancel for pictures that are near each other. The distance is then that of the difference.
    asked = queries.astype(np.float64)
    best = np.full(len(asked), np.inf)
    index = np.zeros(len(asked), np.int64)
    mirrored = np.zeros(len(asked), bool)
    with bar(total=len(pictures), unit="picture", desc="nearest", leave=False) as progress:
        for indices, images in batches(pictures, 256):
            for mirror in (False, True):
                seen = shrunk(images[:, :, ::-1] if mirror else images).astype(np.float64)
                place = (np.sum(seen**2, axis=1) - 2 * (asked @ seen.T)).argmin(axis=1)
                closest = np.sqrt(np.mean((asked - seen[place]) ** 2, axis=1))
                nearer = closest < best
                best = np.where(nearer, closest, best)
                index = np.where(nearer, np.asarray(indices)[place], index)
                mirrored = np.where(nearer, mirror, mirrored)
            progress.update(len(images))
    return Nearest(index, mirrored, best)


def pictures_of(near: Nearest, pictures: Pictures, chosen: range) -> UInt8[np.ndarray, "n h w 3"]:
    """The nearest pictures of queries `chosen`, mirrored where the mirror image is nearest."""
    images = pictures.read(near.index[chosen.start : chosen.stop].tolist())
    turned = near.mirrored[chosen.start : chosen.stop, None, None, None]
    return np.where(turned, images[:, :, ::-1], images)


def quantiles(distances: Float64[np.ndarray, " n"]) -> dict[str, float]:
    """The least, the 1 % quantile and the median of distances, as JSON."""
    return {
        "least": float(distances.min()),
        "percent_1": float(np.quantile(distances, 0.01)),
        "median": float(np.median(distances)),
    }


def memorisation(
    samples: Float64[np.ndarray, " n"], test_faces: Float64[np.ndarray, " n"], training: int
) -> dict[str, Any]:
    """Summarise distances of samples and of unseen faces to `training` pictures, as JSON."""
    return {
        "pictures": len(samples),
        "training_pictures": training,
        "side": SIDE,
        "samples": quantiles(samples),
        "test_faces": quantiles(test_faces),
    }


def memorisation_table(result: dict[str, Any]) -> Table:
    """Table of the result of `memorisation`, with the name of the sampling as "sampling"."""
    line = lambda title, key: [title, f"{result[key]['median']:.3f}", f"{result[key]['least']:.3f}"]
    return Table(
        "Distance to the nearest training face",
        ["", "median", "least"],
        [line("samples", "samples"), line("unseen real faces", "test_faces")],
        f"{result['pictures']} of each ({result['sampling']}) against "
        f"{result['training_pictures']} training faces; root mean square over {SIDE}x{SIDE} "
        "averaged pixels, full range 1. Samples that are much nearer than unseen faces indicate "
        "memorisation.",
    )
