"""Measurements: what they are of, and that they are made once."""

import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CLASSES
from sisma_jax.evaluation.judges import Judge, measure
from sisma_jax.evaluation.scoring import Scorer
from sisma_jax.metrics import frechet_distance


class Arrays:
    """Pictures in memory."""

    def __init__(self, images, key="a"):
        self.images, self.key = images, key
        self.names = [f"face{i}" for i in range(len(images))]

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return self.images[list(indices)]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3)).astype(np.uint8)


def brightness(calls):
    """A judge that takes the mean colour for features and dark pixels for class 1."""

    def look(images):
        calls.append(len(images))
        return images.mean((1, 2), dtype=np.float32), (images[..., 0] < 99).astype(np.uint8)

    return Judge("brightness", "brightness", look, len(CLASSES))


def test_a_set_is_measured_once_by_each_judge(images, tmp_path):
    calls = []
    judge = brightness(calls)
    labels = np.zeros((20, 12, 12), np.uint8)
    labels[:, 0] = 255
    first = measure(tmp_path, judge, Arrays(images), labels)
    assert sum(calls) == 20
    np.testing.assert_allclose(first.statistics.mean, images.mean((0, 1, 2)), rtol=1e-6)
    dark = np.sum(images[:, 1:, :, 0] < 99)
    assert first.confusion[0, 1] == dark and first.confusion.sum() == 20 * 11 * 12
    again = measure(tmp_path, judge, Arrays(images), labels)
    assert sum(calls) == 20
    np.testing.assert_array_equal(first.statistics.cov, again.statistics.cov)
    np.testing.assert_array_equal(first.confusion, again.confusion)
    assert again.statistics.count == 20
    # Other labels, other pictures: other measurements; without labels nothing is compared.
    measure(tmp_path, judge, Arrays(images), 0 * labels)
    assert measure(tmp_path, judge, Arrays(images), None).confusion is None
    measure(tmp_path, judge, Arrays(images, "b"), labels)
    assert sum(calls) == 80


def test_a_damaged_measurement_is_made_again(images, tmp_path):
    calls = []
    measure(tmp_path, brightness(calls), Arrays(images), None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    measure(tmp_path, brightness(calls), Arrays(images), None)
    assert sum(calls) == 40


def test_features_that_are_not_finite_name_their_picture(images, tmp_path):
    def look(images):
        features = images.mean((1, 2), dtype=np.float32)
        features[-1] = np.nan
        return features, None

    judge = Judge("broken", "broken", look)
    with pytest.raises(InputError, match="broken gives picture 'face15' features that are not"):
        measure(tmp_path, judge, Arrays(images), None)
    assert not list(tmp_path.iterdir())


def test_a_row_says_what_its_distance_is_worth(images, tmp_path):
    reference, others = Arrays(images[:12], "a"), Arrays(255 - images, "b")
    judge = brightness([])
    scorer = Scorer(
        folder=tmp_path,
        metrics=frozenset({"fid", "fd_parser", "miou", "psnr_db"}),
        classes=CLASSES,
        reference=reference,
        parser=judge,
        inception=judge,
    )
    labels = np.zeros((20, 12, 12), np.uint8)
    row = scorer.row("others", "pictures", others, labels=labels)
    a, b = (measure(tmp_path, judge, x, None).statistics for x in (others, reference))
    expected = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    assert row.scores["fid"] == row.scores["fd_parser"] == expected
    assert "psnr_db" not in row.scores and "accuracy" not in row.scores
    assert row.scores["miou"] == np.mean([row.class_iou["background"], 0])
    assert row.class_iou["skin"] == 0 and row.class_iou["cloth"] is None
    assert row.notes[0].startswith("FID: 20 pictures against 12; the counts differ")
    assert "under 2,000" in row.notes[1]
    itself = scorer.row("itself", "real", reference, labels=labels[:12])
    assert itself.scores.keys() == {"miou"}
    paired = scorer.row("itself", "real", reference, pairs=reference)
    assert not paired.scores and "infinite" in paired.notes[-1]
    closer = scorer.row("close", "pictures", Arrays(images[:12] // 2 * 2, "c"), pairs=reference)
    assert closer.scores["psnr_db"] > 48 and "ssim" not in closer.scores
