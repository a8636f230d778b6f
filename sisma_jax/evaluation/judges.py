"""Networks that measure sets of pictures, and a cache of their measurements.

Each set is measured once by each judge. When an interrupted report continues, or a later row of the
table needs the measurement, it is read from the folder.
"""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import write_atomically
from sisma_jax.common.progress import bar
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.evaluation.pictures import Pictures, batches, digest, on_all_devices
from sisma_jax.metrics.frechet import Accumulator, Features, Statistics
from sisma_jax.metrics.segmentation import confusion_matrix
from sisma_jax.models.face_parser import FaceParser
from sisma_jax.models.judges.inception import PUBLISHED_FILE, InceptionV3
from sisma_jax.models.weights import tree_checksum


@dataclasses.dataclass(frozen=True)
class Judge:
    """A network that gives every picture a feature vector and, if a parser, every pixel a class."""

    name: str
    key: str
    """Digest of its weights and settings."""
    predict: Callable[[UInt8[np.ndarray, "n h w 3"]], tuple[Any, Any]]
    """Pictures -> features (n, d) and predicted labels (n, h, w) or None."""
    num_classes: int = 0
    convention: str = ""
    """Settings that have to be stated with its scores."""


def parser_judge(parser: FaceParser) -> Judge:
    """The parser as a judge, with its labels and its deepest features."""
    predict = on_all_devices(lambda net, images: (net.features(images), net.labels(images)), parser)
    key = digest("parser", parser.checksum())
    return Judge(parser.name, key, predict, parser.num_classes, f"{parser.name} {key[:12]}")


def inception_judge(inception: InceptionV3, resize: str) -> Judge:
    """Inception as a judge, with its pooled features; `resize` as in its `features`."""
    predict = on_all_devices(
        lambda net, images: (net.features(images, resize=resize), None), inception
    )
    key = digest("inception", inception_features(inception, resize).weights, resize)
    return Judge("Inception-v3", key, predict, convention=resize)


def inception_features(inception: InceptionV3, resize: str) -> Features:
    """The description of its features, for files of statistics."""
    name = Path(PUBLISHED_FILE).stem
    return Features(network=name, weights=tree_checksum(inception.params), resize=resize)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measurement of a judge on a set of pictures."""

    statistics: Statistics
    confusion: Int64[np.ndarray, "classes classes"] | None
    """Pixels by label (row) and prediction; None without label maps or predictions."""


def measure(
    folder: Path,
    judge: Judge,
    pictures: Pictures,
    labels: UInt8[np.ndarray, "n h w"] | None,
) -> Measurement:
    """Measure all pictures, or read this set's earlier measurement from `folder`.

    Args:
      folder: folder of measurements.
      judge: the network that measures.
      pictures: at least two pictures.
      labels: label maps that the pictures should follow; 255 is not counted.

    Raises:
      InputError: a feature is not finite.
    """
    labels = labels if judge.num_classes else None  # no predictions to compare
    masks = "" if labels is None else digest(labels)
    file = folder / f"{digest(judge.key, pictures.key, masks)[:32]}.npz"
    stored = _read(file)
    if stored is not None:
        return stored
    confusion = np.zeros((judge.num_classes,) * 2, np.int64)
    features = Accumulator()
    with bar(total=len(pictures), unit="picture", desc=judge.name, leave=False) as progress:
        for indices, images in batches(pictures):
            vectors, predicted = judge.predict(images)
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
    """Read what `_write` wrote; None if there is no intact file."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        statistics = Statistics(count=int(arrays["count"]), mean=arrays["mu"], cov=arrays["sigma"])
        return Measurement(statistics, arrays.get("confusion"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, measured: Measurement) -> None:
    stats = measured.statistics
    arrays: dict[str, Any] = {
        "count": stats.count,
        "mu": stats.mean,
        "sigma": stats.cov,
    }
    if measured.confusion is not None:
        arrays["confusion"] = measured.confusion
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())
