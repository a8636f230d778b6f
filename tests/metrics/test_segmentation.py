"""Confusion matrices and what is read off them, by hand."""

import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy

LABELS = np.array([[0, 0, 1], [1, 1, 255]], np.uint8)
FOUND = np.array([[0, 1, 1], [1, 0, 3]], np.uint8)


def test_rows_are_labels_and_columns_predictions():
    expected = np.zeros((4, 4), np.int64)
    expected[:2, :2] = [[1, 1], [1, 2]]
    confusion = confusion_matrix(LABELS, FOUND, 4, ignore=255)
    np.testing.assert_array_equal(confusion, expected)
    assert confusion.dtype == np.int64
    assert pixel_accuracy(confusion) == 3 / 5
    np.testing.assert_array_equal(class_iou(confusion), [1 / 3, 2 / 4, np.nan, np.nan])
    assert mean_iou(confusion) == (1 / 3 + 2 / 4) / 2


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3)
    np.testing.assert_array_equal(class_iou(confusion), [1 / 2, np.nan, 0])
    assert mean_iou(confusion) == 1 / 4


def test_pooling_is_the_matrix_of_all_pixels():
    random = np.random.default_rng(0)
    labels, found = random.integers(0, 19, (2, 5, 8, 8)).astype(np.uint8)
    parts = sum(confusion_matrix(a, b, 19) for a, b in zip(labels, found, strict=True))
    whole = confusion_matrix(labels, found, 19)
    np.testing.assert_array_equal(parts, whole)
    assert whole[3, 7] == np.sum((labels == 3) & (found == 7))


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 3\) and predictions of shape \(3,\)"):
        confusion_matrix(LABELS, FOUND[0], 4)
    with pytest.raises(InputError, match=r"label 255 is not a class: use ids 0\.\.3, or pass it"):
        confusion_matrix(LABELS, FOUND, 4)
    with pytest.raises(InputError, match=r"prediction 1 is not a class: use ids 0\.\.0$"):
        confusion_matrix(np.array([0, 0]), np.array([0, 1]), 1)
    for score in (mean_iou, pixel_accuracy):
        with pytest.raises(InputError, match="confusion matrix is empty"):
            score(np.zeros((3, 3), np.int64))
