"""What training an autoencoder needs beside the module: its loss, its start, its latents' scale.

Loss: mean absolute error of the reconstruction + kl_weight * divergence per latent element, both
at one posterior sample, as in latent diffusion without its perceptual and adversarial parts. The
divergence draws the latents towards N(0, 1) and makes the decoder bear the posterior's noise, hence
the errors of a generative model too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from sisma_jax.errors import InputError
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    posterior_kl,
    sample_latent,
)
from sisma_jax.models.autoencoder.layers import fold_pixels

PEAK_TO_PEAK = 2.0
"""Range of images in [-1, 1]."""
STATISTICS_BATCH = 64


def posterior_noise(
    config: AutoencoderConfig, key: PRNGKeyArray, images: Shaped[Array, "b h w c"]
) -> Float[Array, "b _ _ latent_channels"]:
    """Draw what one sample of each image's posterior needs."""
    count, height, width, _ = images.shape
    grid = height // config.factor, width // config.factor
    return jax.random.normal(key, (count, *grid, config.latent_channels))


def autoencoder_loss(
    module: AutoencoderKL,
    params: Any,
    noise: Float[Array, "b _ _ latent_channels"],
    images: Float[Array, "b h w c"],
    kl_weight: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the training loss of a batch and its parts.

    Args:
      module: the autoencoder.
      params: its parameters.
      noise: of the posterior sample (`posterior_noise`).
      images: in [-1, 1].
      kl_weight: weight of the divergence per latent element.

    Returns:
      The loss, and `reconstruction` (mean absolute error), `kl` (per element) and `psnr` (dB, of
      the batch's mean squared error).
    """
    mean, logvar = module.apply({"params": params}, images, method="encode")
    z = sample_latent(noise, mean, logvar, scaling_factor=1.0)
    decoded = module.apply({"params": params}, z, method="decode")
    error = jnp.mean(jnp.abs(decoded - images))
    kl = posterior_kl(mean, logvar)
    decibels = 10.0 * jnp.log10(PEAK_TO_PEAK**2 / jnp.mean(jnp.square(decoded - images)))
    metrics = {"reconstruction": error, "kl": kl, "psnr": decibels}
    return error + kl_weight * kl, metrics


def patch_pca_init(params: Any, images: Float[Array, "b h w c"]) -> Any:
    """Return parameters whose linear maps are the principal components of image patches.

    The linear encoder then projects each patch on its strongest components, one per latent
    channel, scaled to unit variance; the linear decoder is its pseudo-inverse. No linear map of
    patches with as many channels reconstructs these images with less squared error.

    Args:
      params: of an AutoencoderKL with `linear_skip`; not changed.
      images: in [-1, 1], a few hundred are enough.

    Raises:
      InputError: if the parameters have no linear maps.
    """
    if "linear_encoder" not in params:
        raise InputError(
            "the autoencoder has no linear maps to start from principal components: set "
            "autoencoder.linear_skip"
        )
    shape = params["linear_encoder"]["kernel"].shape
    factor = round((shape[0] / images.shape[-1]) ** 0.5)
    patches = np.asarray(fold_pixels(images, factor), np.float64).reshape(-1, shape[0])
    mean = patches.mean(0)
    variance, components = np.linalg.eigh(np.cov(patches, rowvar=False))
    # Ascending order: the strongest are the last.
    components = components[:, ::-1][:, : shape[1]]
    deviation = np.sqrt(variance[::-1][: shape[1]])
    # An eigenvector's sign is the linear algebra library's choice.
    components = components * np.where(components.sum(0) < 0, -1.0, 1.0)
    encoder = components / deviation
    linear = {
        "linear_encoder": {"kernel": encoder, "bias": -mean @ encoder},
        "linear_decoder": {"kernel": (components * deviation).T, "bias": mean},
    }
    return {**params, **jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), linear)}


def latent_scale(autoencoder: Autoencoder, images: Float[Array, "n h w c"]) -> float:
    """Return the scaling factor that gives sampled latents unit standard deviation.

    It is one number for all channels, over the root of their variance about the common mean.

    Args:
      autoencoder: a trained one; its own scaling factor plays no part.
      images: training images in [-1, 1]; encoded `STATISTICS_BATCH` at a time.
    """
    noise = posterior_noise(autoencoder.config, jax.random.key(0), images)
    starts = [slice(i, i + STATISTICS_BATCH) for i in range(0, len(images), STATISTICS_BATCH)]
    latents = [
        sample_latent(noise[rows], *autoencoder.encode(images[rows]), 1.0) for rows in starts
    ]
    return float(1.0 / np.std(np.concatenate(latents), dtype=np.float64))
