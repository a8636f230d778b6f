"""PSNR and SSIM against their definitions, written out in NumPy."""

import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sisma_jax.common.errors import InputError
from sisma_jax.metrics import psnr, ssim


def pictures(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (2, 14, 17, 3)).astype(dtype)


def ssim_by_definition(a, b, data_range):
    """Wang et al. 2004, equation 13, at every place where the window fits."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            for channel in range(a.shape[2]):
                p = a[y : y + 11, x : x + 11, channel].astype(np.float64)
                q = b[y : y + 11, x : x + 11, channel].astype(np.float64)
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                variance_p = (window * (p - mean_p) ** 2).sum()
                variance_q = (window * (q - mean_q) ** 2).sum()
                covariance = (window * (p - mean_p) * (q - mean_q)).sum()
                values.append(
                    (2 * mean_p * mean_q + c1)
                    * (2 * covariance + c2)
                    / ((mean_p**2 + mean_q**2 + c1) * (variance_p + variance_q + c2))
                )
    return np.mean(values)


def test_ssim_is_wangs():
    a = pictures(0)
    b = np.clip(a + np.random.default_rng(1).normal(0, 20, a.shape), 0, 255).astype(np.float32)
    expected = [ssim_by_definition(x, y, 255) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, 255), expected, atol=1e-12)
    np.testing.assert_allclose(ssim(a / 255, b / 255, 1), expected, atol=1e-6)
    np.testing.assert_allclose(ssim(a, a, 255), 1, atol=1e-12)


def test_scores_need_no_device_of_jax(monkeypatch):
    """As where JAX_PLATFORMS is "cuda" or "tpu", without "cpu"."""

    def refuse(*arguments, **options):
        raise RuntimeError("Unknown backend: 'cpu' requested, but no platforms that are instances")

    for name in ("devices", "local_devices", "default_device", "device_put"):
        monkeypatch.setattr(jax, name, refuse)
    a, b = pictures(0), pictures(1)
    assert ssim(a, b, 255).shape == psnr(a, b, 255).shape == (2,)


def test_lone_pictures_score_as_scikit_image_has_it():
    random = np.random.default_rng(2)
    a = np.linspace(-1, 1, 40 * 33 * 3).reshape(40, 33, 3)  # smooth: variances are small
    b = a + random.normal(0, 0.01, a.shape)
    expected = structural_similarity(
        a, b, data_range=2, channel_axis=-1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    np.testing.assert_allclose(ssim(a, b, 2), expected, atol=1e-9)
    np.testing.assert_allclose(psnr(a, b, 2), peak_signal_noise_ratio(a, b, data_range=2))
    assert ssim(a, b, 2).shape == psnr(a, b, 2).shape == ()
    assert ssim(a, b, 2).dtype == np.float64


def test_psnr_is_that_of_the_mean_squared_error():
    a, b = pictures(0, np.uint8), pictures(1, np.uint8)
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(psnr(a, b, 255), 10 * np.log10(255**2 / error), rtol=1e-12)
    assert np.isinf(psnr(a, a, 255)).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(metric):
    a = pictures(0)
    with pytest.raises(InputError, match="cannot be compared"):
        metric(a, a[:1], 255)
    with pytest.raises(InputError, match="data_range is 0"):
        metric(a, a, 0)


def test_pictures_below_the_window_are_refused():
    with pytest.raises(InputError, match="10 x 17 pixels are smaller than SSIM's window"):
        ssim(pictures(0)[:, :10], pictures(1)[:, :10], 255)
