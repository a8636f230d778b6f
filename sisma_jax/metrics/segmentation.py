"""Agreement of predicted label maps with given ones, from one confusion matrix over all pixels.

As in the papers on this task, the matrix is pooled over a set of pictures before scores are
computed; the mean of per-picture scores would differ.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from sisma_jax.common.errors import InputError


def confusion_matrix(
    labels: Integer[np.ndarray, "*shape"],
    predictions: Integer[np.ndarray, "..."],
    num_classes: int,
    ignore: int | None = None,
) -> Int64[np.ndarray, "num_classes num_classes"]:
    """Count pixels by class: entry (i, j) counts pixels of label i that were predicted as j.

    Args:
      labels: true class ids.
      predictions: predicted class ids, shaped like `labels`.
      num_classes: ids are 0..num_classes - 1.
      ignore: label of pixels that are not counted (255: unlabelled).

    Raises:
      InputError: if the shapes differ, or an id is not a class.
    """
    if labels.shape != predictions.shape:
        raise InputError(
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape} cannot "
            "be compared: give equal shapes"
        )
    if ignore is not None:
        kept = labels != ignore
        labels, predictions = labels[kept], predictions[kept]
    for name, ids in (("label", labels), ("prediction", predictions)):
        wrong = (ids < 0) | (ids >= num_classes)
        if wrong.any():
            raise InputError(
                f"{name} {ids[wrong][0]} is not a class: use ids 0..{num_classes - 1}"
                + (", or pass it as `ignore`" if name == "label" else "")
            )
    pairs = labels.astype(np.int64).ravel() * num_classes + predictions.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(
    confusion: Int64[np.ndarray, "classes classes"],
) -> Float64[np.ndarray, " classes"]:
    """Return the intersection over union per class; NaN for classes that do not occur."""
    both = np.diagonal(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Return the mean of `class_iou` over the classes that occur as label or prediction.

    Raises:
      InputError: if no pixel was counted.
    """
    _check_counted(confusion)
    return float(np.nanmean(class_iou(confusion)))


def pixel_accuracy(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Return the share of correctly predicted pixels.

    Raises:
      InputError: if no pixel was counted.
    """
    _check_counted(confusion)
    return float(np.trace(confusion) / confusion.sum())


def _check_counted(confusion: np.ndarray) -> None:
    if not confusion.sum():
        raise InputError("the confusion matrix is empty: give labelled pixels")
