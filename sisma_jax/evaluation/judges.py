"""Networks that look at pictures, and what they measured on a set, kept by what set it is.

A measurement is made once for a pair of set and judge: a report that was interrupted, or a later
row of the same table, takes it from the folder.
"""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from sisma_jax.data.classes import UNLABELLED
from sisma_jax.errors import InputError
from sisma_jax.evaluation.pictures import Pictures, batches, digest, on_all_devices
from sisma_jax.files import write_atomically
from sisma_jax.metrics.frechet import Accumulator, Features, Statistics
from sisma_jax.metrics.segmentation import confusion_matrix
from sisma_jax.models.face_parser import FaceParser
from sisma_jax.models.inception import PUBLISHED_FILE, InceptionV3
from sisma_jax.models.weights import tree_checksum
from sisma_jax.progress import bar


@dataclasses.dataclass(frozen=True)
class Judge:
    """A network that gives every picture a feature vector and, a parser, every pixel a class."""

    name: str
    key: str
    """Digest of its weights and of how it is used."""
    look: Callable[[UInt8[np.ndarray, "n h w 3"]], tuple[Any, Any]]
    """Pictures -> features (n, d) and predicted labels (n, h, w) or None."""
    num_classes: int = 0
    convention: str = ""
    """What of how it is used a reader has to see beside its scores."""


def parser_judge(parser: FaceParser) -> Judge:
    """The parser, by its labels and its deepest features."""
    look = on_all_devices(lambda net, images: (net.features(images), net.labels(images)), parser)
    key = digest("parser", parser.checksum())
    return Judge(parser.name, key, look, parser.num_classes, f"{parser.name} {key[:12]}")


def inception_judge(inception: InceptionV3, resize: str) -> Judge:
    """Inception by its pooled features; `resize` as its `features` takes it."""
    look = on_all_devices(
        lambda net, images: (net.features(images, resize=resize), None), inception
    )
    key = digest("inception", inception_features(inception, resize).weights, resize)
    return Judge("Inception-v3", key, look, convention=resize)


def inception_features(inception: InceptionV3, resize: str) -> Features:
    """What its features are, for files of them."""
    name = Path(PUBLISHED_FILE).stem
    return Features(network=name, weights=tree_checksum(inception.params), resize=resize)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a judge measured on a set of pictures."""

    statistics: Statistics
    confusion: Int64[np.ndarray, "classes classes"] | None
    """Pixels by label (row) and prediction, where there are label maps and the judge predicts."""


def measure(
    folder: Path,
    judge: Judge,
    pictures: Pictures,
    labels: UInt8[np.ndarray, "n h w"] | None,
) -> Measurement:
    """Look at every picture, or take from `folder` what was measured on this set before.

    Args:
      folder: of measurements.
      judge: who looks.
      pictures: at least two.
      labels: label maps that the pictures should follow; 255 is not counted.

    Raises:
      InputError: a feature is not finite.
    """
    labels = labels if judge.num_classes else None  # nothing to compare them with
    masks = "" if labels is None else digest(labels)
    file = folder / f"{digest(judge.key, pictures.key, masks)[:32]}.npz"
    found = _read(file)
    if found is not None:
        return found
    confusion = np.zeros((judge.num_classes,) * 2, np.int64)
    features = Accumulator()
    with bar(total=len(pictures), unit="picture", desc=judge.name, leave=False) as progress:
        for indices, images in batches(pictures):
            vectors, predicted = judge.look(images)
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{judge.name} gives picture {pictures.names[indices[int(bad.argmax())]]!r} "
                    "features that are not finite: give intact weights"
                )
            features.add(vectors)
            if labels is not None:
                chosen = labels[indices.start : indices.stop]
                confusion += confusion_matrix(chosen, predicted, judge.num_classes, UNLABELLED)
            progress.update(len(images))
    measured = Measurement(features.statistics(), None if labels is None else confusion)
    _write(file, measured)
    return measured


def _read(file: Path) -> Measurement | None:
    """What `_write` wrote; None where there is no intact file."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        found = Statistics(count=int(arrays["count"]), mean=arrays["mu"], cov=arrays["sigma"])
        return Measurement(found, arrays.get("confusion"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, measured: Measurement) -> None:
    found = measured.statistics
    arrays: dict[str, Any] = {"count": found.count, "mu": found.mean, "sigma": found.cov}
    if measured.confusion is not None:
        arrays["confusion"] = measured.confusion
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())
