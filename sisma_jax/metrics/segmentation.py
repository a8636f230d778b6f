"""How well predicted label maps agree with given ones: from one confusion matrix over all pixels.

The matrix is pooled over a whole set of pictures before anything is divided, as the papers on this
task do; the mean of per-picture scores would be another number.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from sisma_jax.errors import InputError


def confusion_matrix(
    labels: Integer[np.ndarray, "*shape"],
    predictions: Integer[np.ndarray, "..."],
    num_classes: int,
    ignore: int | None = None,
) -> Int64[np.ndarray, "num_classes num_classes"]:
    """Count pixels by class: entry (i, j) are those of label i that were predicted as j.

    Args:
      labels: class ids, what is true.
      predictions: class ids of the same shape.
      num_classes: ids are 0..num_classes - 1.
      ignore: pixels with this label are not counted (255: unlabelled).

    Raises:
      InputError: if the shapes differ, or an id is of no class.
    """
    if labels.shape != predictions.shape:
        raise InputError(
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape} cannot "
            "be compared: give as many of both, of one size"
        )
    if ignore is not None:
        kept = labels != ignore
        labels, predictions = labels[kept], predictions[kept]
    for name, ids in (("label", labels), ("prediction", predictions)):
        wrong = (ids < 0) | (ids >= num_classes)
        if wrong.any():
            raise InputError(
                f"{name} {ids[wrong][0]} is no class: use ids 0..{num_classes - 1}"
                + (", or name it as `ignore`" if name == "label" else "")
            )
    pairs = labels.astype(np.int64).ravel() * num_classes + predictions.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(
    confusion: Int64[np.ndarray, "classes classes"],
) -> Float64[np.ndarray, " classes"]:
    """Return intersection over union by class; NaN of classes that occur nowhere."""
    both = np.diagonal(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Return the mean of `class_iou` over the classes that occur, as label or as prediction.

    Raises:
      InputError: if no pixel was counted.
    """
    _check_counted(confusion)
    return float(np.nanmean(class_iou(confusion)))


def pixel_accuracy(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Return the share of pixels that were predicted as what they are.

    Raises:
      InputError: if no pixel was counted.
    """
    _check_counted(confusion)
    return float(np.trace(confusion) / confusion.sum())


def _check_counted(confusion: np.ndarray) -> None:
    if not confusion.sum():
        raise InputError("the confusion matrix has counted no pixel: give it labelled ones")
