"""The Frechet distance: exact with few samples, too; statistics in batches and in files."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from sisma_jax.common.errors import InputError
from sisma_jax.metrics.frechet import (
    Accumulator,
    Features,
    Statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
    statistics,
)


def features(count, size, seed, decay=1.0):
    """float32 features whose directions have variances 1, 2^-decay, 3^-decay ..."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(99).standard_normal((size, size)))
    deviations = np.arange(1.0, size + 1) ** (-decay / 2)
    latent = random.standard_normal((count, size)) * deviations
    return (0.4 + 0.1 * seed + (1 + 0.1 * seed) * latent @ rotation).astype(np.float32)


def distance(a: Statistics, b: Statistics):
    return frechet_distance(a.mean, a.cov, b.mean, b.cov)


def distance_of_features(x, y):
    """Without covariances: by the singular values of the product of the features themselves."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    p, q = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    trace = np.linalg.svd(p @ q.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(p**2) + np.sum(q**2) - 2 * trace


class TestDistance:
    def test_it_is_that_of_the_matrix_square_root(self):
        a, b = statistics(features(500, 64, 0)), statistics(features(300, 64, 1))
        root = scipy.linalg.sqrtm(a.cov @ b.cov)
        expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2 * root)
        np.testing.assert_allclose(distance(a, b), expected, rtol=1e-8)

    def test_variances_along_axes_have_a_closed_form(self):
        random = np.random.default_rng(0)
        p, q, mean = random.uniform(0, 2, (3, 50))
        p[:30] = q[20:] = 0
        expected = np.sum(mean**2) + np.sum((np.sqrt(p) - np.sqrt(q)) ** 2)
        found = frechet_distance(mean, np.diag(p), np.zeros(50), np.diag(q))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    @pytest.mark.parametrize("decay", [0, 1, 4])
    @pytest.mark.parametrize(("first", "second"), [(20, 30), (20, 350), (127, 128)])
    def test_fewer_samples_than_features(self, first, second, decay):
        x, y = features(first, 128, 0, decay), features(second, 128, 1, decay)
        expected = distance_of_features(x, y)
        np.testing.assert_allclose(distance(statistics(x), statistics(y)), expected, rtol=1e-9)

    @pytest.mark.parametrize(
        "count",
        [pytest.param(200, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.night)],
    )
    def test_fewer_samples_than_inceptions_features(self, count):
        x, y = (np.maximum(features(count, 2048, seed, decay=1.5), 0) for seed in (0, 1))
        expected = distance_of_features(x, y)
        np.testing.assert_allclose(distance(statistics(x), statistics(y)), expected, rtol=1e-9)

    @pytest.mark.parametrize("count", [20, 200])
    def test_it_is_zero_to_itself_and_symmetric(self, count):
        a, b = statistics(features(count, 64, 0)), statistics(features(count, 64, 1))
        assert 0 <= distance(a, a) < 1e-13 * np.trace(a.cov)
        np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-13)

    def test_points_are_as_far_as_their_means(self):
        zero = np.zeros((3, 3))
        assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3

    def test_covariances_rounded_to_float32_will_do(self):
        a, b = statistics(features(50, 64, 0)), statistics(features(90, 64, 1))
        rounded = a.cov.astype(np.float32) * (1 + 1e-7 * np.tri(64, dtype=np.float32))
        found = frechet_distance(a.mean, rounded, b.mean, b.cov)
        np.testing.assert_allclose(found, distance(a, b), rtol=1e-3)

    @pytest.mark.parametrize(
        ("change", "phrase"),
        [
            (dict(mean_b=np.zeros(3)), r"second Gaussian have shapes \(3,\) and \(4, 4\)"),
            (dict(cov_a=np.eye(4)[:3]), r"first Gaussian have shapes \(4,\) and \(3, 4\)"),
            (dict(mean_a=np.zeros(3), cov_a=np.eye(3)), "of 3 and 4 dimensions"),
            (dict(cov_a=np.diag([1, 1, 1, np.nan])), "first Gaussian has values that are not fin"),
            (dict(mean_b=np.full(4, np.inf)), "second Gaussian has values that are not finite"),
            (dict(cov_b=np.eye(4) + 0.1 * np.eye(4, k=1)), "second Gaussian is not symmetric"),
            (dict(cov_b=np.diag([1, 1, 1, -0.1])), "second Gaussian has the negative eigenvalue"),
        ],
    )
    def test_what_has_no_distance_is_refused(self, change, phrase):
        gaussians = dict(mean_a=np.zeros(4), cov_a=np.eye(4), mean_b=np.zeros(4), cov_b=np.eye(4))
        with pytest.raises(InputError, match=phrase):
            frechet_distance(**(gaussians | change))


class TestStatistics:
    def test_they_are_numpys(self):
        x = features(50, 16, 0)
        found = statistics(x)
        assert found.count == 50 and found.cov.dtype == np.float64
        np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-14)
        np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False), rtol=1e-12, atol=1e-15)

    def test_batches_of_any_size_add_up(self):
        x = features(50, 16, 0).astype(np.float64) + 1e6  # uncentred squares would lose 12 digits
        accumulator = Accumulator()
        for start, stop in ((0, 1), (1, 1), (1, 20), (20, 21), (21, 50)):
            accumulator.add(x[start:stop])
        found, expected = accumulator.statistics(), statistics(x)
        assert found.count == 50
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
        np.testing.assert_allclose(found.cov, expected.cov, rtol=1e-8, atol=1e-10)

    def test_what_was_handed_out_stays_as_it_was(self):
        x = features(50, 16, 0)
        accumulator = Accumulator()
        accumulator.add(x[:20])
        early = accumulator.statistics()
        accumulator.add(x[20:])
        np.testing.assert_array_equal(early.mean, statistics(x[:20]).mean)
        np.testing.assert_array_equal(early.cov, statistics(x[:20]).cov)

    def test_what_has_none_is_refused(self):
        x = features(3, 4, 0)
        for few in (x[:0], x[:1]):
            with pytest.raises(InputError, match=f"no covariance of {len(few)} samples"):
                statistics(few)
        with pytest.raises(InputError, match=r"have shape \(4,\)"):
            statistics(x[0])
        for value in (np.nan, np.inf):
            x[1, 2] = value
            with pytest.raises(InputError, match=r"1 of 3 samples.*the first one is number 1"):
                statistics(x)
        accumulator = Accumulator()
        accumulator.add(np.zeros((2, 3)))
        with pytest.raises(InputError, match="samples have 4 features and had 3 before"):
            accumulator.add(np.zeros((2, 4)))


class TestFiles:
    @pytest.mark.parametrize("count", [50, None])
    def test_they_come_back_exactly(self, count, tmp_path):
        found = statistics(features(50, 16, 0))
        path = tmp_path / "a.npz"
        save_statistics(path, Statistics(mean=found.mean, cov=found.cov, count=count))
        again = load_statistics(path)
        assert again.count == count
        np.testing.assert_array_equal(again.mean, found.mean)
        np.testing.assert_array_equal(again.cov, found.cov)

    def test_what_the_features_are_comes_back_and_pytorch_fid_still_reads_the_file(self, tmp_path):
        features = Features(network="a network", weights="0" * 64, resize="half_pixel")
        found = dataclasses.replace(statistics(np.eye(3)), features=features)
        save_statistics(tmp_path / "a.npz", found)
        assert load_statistics(tmp_path / "a.npz").features == features
        with np.load(tmp_path / "a.npz") as file:  # as its compute_statistics_of_path does
            np.testing.assert_array_equal(file["mu"][:], found.mean)
            np.testing.assert_array_equal(file["sigma"][:], found.cov)

    def test_pytorch_fids_files_are_read(self, tmp_path):
        found = statistics(features(50, 16, 0))
        np.savez_compressed(tmp_path / "a.npz", mu=found.mean, sigma=found.cov)
        again = load_statistics(tmp_path / "a.npz")
        assert again.count is None and again.features is None
        assert distance(again, found) < 1e-13

    @pytest.mark.parametrize(
        ("arrays", "phrase"),
        [
            (dict(mu=np.zeros(2)), "lacks sigma: give statistics as pytorch-fid writes them"),
            (dict(images=np.zeros(2)), "lacks mu and sigma"),
            (dict(mu=np.zeros(2), sigma=np.eye(3)), r"have shapes \(2,\) and \(3, 3\)"),
            (dict(mu=np.zeros(2), sigma=np.full((2, 2), np.nan)), "values that are not finite"),
            (dict(mu=np.array(["a", "b"]), sigma=np.eye(2)), "mu in .* has dtype <U1"),
            (dict(mu=np.array([{}, {}]), sigma=np.eye(2)), "cannot be read as .npz"),
            (dict(mu=np.zeros(2), sigma=np.eye(2), count=1), "count in .* is 1"),
            (dict(mu=np.zeros(2), sigma=np.eye(2), resize="tf1"), "does not describe its features"),
            (
                dict(mu=np.zeros(2), sigma=np.eye(2), network="a", weights="b", resize=1),
                "does not describe its features by strings",
            ),
        ],
    )
    def test_other_contents_are_refused(self, arrays, phrase, tmp_path):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=phrase) as caught:
            load_statistics(tmp_path / "a.npz")
        assert "a.npz" in str(caught.value)

    def test_what_is_no_intact_file_is_refused(self, tmp_path):
        path = tmp_path / "a.npz"
        with pytest.raises(InputError, match=r"there are no statistics .*a\.npz"):
            load_statistics(path)
        save_statistics(path, statistics(features(50, 16, 0)))
        whole = path.read_bytes()
        np.save(tmp_path / "a.npy", np.zeros(3))
        for content in (b"", whole[:-30], whole[:100], b"text", (tmp_path / "a.npy").read_bytes()):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"cannot be read as \.npz"):
                load_statistics(path)
