"""Training of autoencoders: losses, initialisation, and the scale of the latents.

The loss without a codebook is the mean absolute error of the reconstruction + kl_weight * the KL
divergence per latent element, both at one posterior sample, as in latent diffusion without its
adversarial part. The divergence draws the latents towards N(0, 1) and makes the decoder robust to
the posterior's noise, and so to the errors of a generative model. With either loss the
reconstruction error may weight pixels differently, and further terms may be added that compare
images with their reconstructions or judge these: a perceptual distance (LPIPS, which latent
diffusion adds with weight 1, or its VGG-16 without learned weights) and an adversarial loss.

The loss with a codebook, for latents z with nearest entries e and stop-gradient sg, is

    mean |decode(z + sg(e - z)) - images| + mean (e - sg(z))^2 + commitment * mean (sg(e) - z)^2

The decoder sees entries, and its gradient is passed to z unchanged (straight-through). The second
term draws entries to their latents, the third latents to their entries, as in van den Oord et al.,
arXiv 1711.00937. By default the code of CompVis and diffusers weights the second term instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    posterior_kl,
    sample_latent,
)
from sisma_jax.models.autoencoder.layers import fold_pixels, nearest
from sisma_jax.models.judges.lpips import Lpips, squared_distance

PEAK_TO_PEAK = 2.0
"""Range of images in [-1, 1]."""
STATISTICS_BATCH = 64
LATENTS_PER_ENTRY = 64
"""The most latents per codebook entry that initialise a codebook."""
KMEANS_ROUNDS = 10

Terms = Callable[
    [Float[Array, "b h w c"], Float[Array, "b h w c"]],
    tuple[Float[Array, ""], dict[str, Float[Array, ""]]],
]
"""(reconstructions, images) in [-1, 1] -> (what they add to the loss, their metrics)."""


def posterior_noise(
    config: AutoencoderConfig, key: PRNGKeyArray, images: Shaped[Array, "b h w c"]
) -> Float[Array, "b _ _ latent_channels"]:
    """Draw N(0, 1) noise for one posterior sample of each image."""
    count, height, width, _ = images.shape
    grid = height // config.factor, width // config.factor
    return jax.random.normal(key, (count, *grid, config.latent_channels))


def autoencoder_loss(
    module: AutoencoderKL,
    params: Any,
    noise: Float[Array, "b _ _ latent_channels"],
    images: Float[Array, "b h w c"],
    kl_weight: float,
    weight: Float[Array, "b h w 1"] | None = None,
    further: Terms | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the training loss of a batch and its parts.

    Args:
      module: the autoencoder.
      params: its parameters.
      noise: noise of the posterior sample (`posterior_noise`).
      images: images in [-1, 1].
      kl_weight: weight of the KL divergence per latent element.
      weight: weights of the pixels, 1 on average; None for 1 everywhere.
      further: further terms of the loss, which do not use the weights of the pixels; None for none.

    Returns:
      The loss, `kl` (per element) and the metrics of `reconstruction_loss`.
    """
    mean, logvar = module.apply({"params": params}, images, method="encode")
    z = sample_latent(noise, mean, logvar, scaling_factor=1.0)
    decoded = module.apply({"params": params}, z, method="decode")
    kl = posterior_kl(mean, logvar)
    loss, metrics = reconstruction_loss(decoded, images, weight, further)
    return loss + kl_weight * kl, {"kl": kl} | metrics


def patch_pca_init(params: Any, images: Float[Array, "b h w c"]) -> Any:
    """Return parameters whose linear maps are the principal components of image patches.

    The linear encoder projects each patch on its leading components, one per latent channel,
    scaled to unit variance; the linear decoder is its pseudo-inverse. No linear map of patches
    with as many channels reconstructs these images with less squared error.

    With a codebook all components have the same scale, for unit variance on average: the nearest
    entry is then also the one whose patch has the least squared error.

    Args:
      params: parameters of an AutoencoderKL with `linear_skip`; not modified.
      images: images in [-1, 1]; a few hundred are enough.

    Raises:
      InputError: if the parameters have no linear maps.
    """
    if "linear_encoder" not in params:
        raise InputError(
            "the autoencoder has no linear maps to initialise by principal components: set "
            "autoencoder.linear_skip"
        )
    shape = params["linear_encoder"]["kernel"].shape
    factor = round((shape[0] / images.shape[-1]) ** 0.5)
    patches = np.asarray(fold_pixels(images, factor), np.float64).reshape(-1, shape[0])
    mean = patches.mean(0)
    variance, components = np.linalg.eigh(np.cov(patches, rowvar=False))
    # `eigh` sorts in ascending order.
    components = components[:, ::-1][:, : shape[1]]
    deviation = np.sqrt(variance[::-1][: shape[1]])
    if "quantize" in params:
        deviation = np.full_like(deviation, np.sqrt(np.mean(np.square(deviation))))
    # The sign of an eigenvector depends on the linear algebra library.
    components = components * np.where(components.sum(0) < 0, -1.0, 1.0)
    encoder = components / deviation
    linear = {
        "linear_encoder": {"kernel": encoder, "bias": -mean @ encoder},
        "linear_decoder": {"kernel": (components * deviation).T, "bias": mean},
    }
    return {**params, **jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), linear)}


def codebook_init(autoencoder: Autoencoder, images: Float[Array, "n h w c"]) -> Any:
    """Return parameters whose codebook covers the latents of images.

    Entries are drawn from the distinct latents and refined by a few rounds of k-means, so that each
    has latents from the first step. With the published initialisation, uniform in [-1/k, 1/k], most
    latents share a few entries, and the others receive no gradient.

    Args:
      autoencoder: an autoencoder with a codebook, otherwise initialised; not modified.
      images: a few hundred images in [-1, 1]. With fewer distinct latents than codebook entries,
        some entries start equal.
    """
    codebook = autoencoder.config.codebook
    latents = np.concatenate([autoencoder.encode(part)[0] for part in batches(images)])
    random = np.random.default_rng(0)
    # Distinct latents only: much of a picture is flat.
    latents = np.unique(latents.reshape(-1, latents.shape[-1]), axis=0)
    most = min(len(latents), LATENTS_PER_ENTRY * codebook)
    latents = random.choice(latents, most, replace=False)
    entries = random.choice(latents, codebook, replace=most < codebook)
    find = jax.jit(nearest)
    for _ in range(KMEANS_ROUNDS):
        indices = np.asarray(find(entries, latents))
        counts = np.bincount(indices, minlength=codebook)
        sums = [np.bincount(indices, weights=x, minlength=codebook) for x in latents.T]
        means = np.stack(sums, axis=-1) / np.maximum(counts, 1)[:, None]
        entries = np.where(counts[:, None] > 0, means, entries).astype(np.float32)
    return {**autoencoder.params, "quantize": {"embedding": {"embedding": jnp.asarray(entries)}}}


def codebook_loss(
    module: AutoencoderKL,
    params: Any,
    images: Float[Array, "b h w c"],
    commitment: float,
    weight: Float[Array, "b h w 1"] | None = None,
    further: Terms | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the training loss of a batch for an autoencoder with a codebook, and its parts.

    Args:
      module: the autoencoder.
      params: its parameters.
      images: images in [-1, 1].
      commitment: weight of the third term of the loss; that of the second is 1.
      weight, further: as in `autoencoder_loss`.

    Returns:
      The loss, `quantisation` (mean squared distance of latents from their entries, per element)
      and the metrics of `reconstruction_loss`.
    """
    z, _ = module.apply({"params": params}, images, method="encode")
    entries, _ = module.apply({"params": params}, z, method="quantise")
    straight_through = z + jax.lax.stop_gradient(entries - z)
    decoded = module.apply({"params": params}, straight_through, method="decode_entries")
    to_entries = jnp.mean(jnp.square(jax.lax.stop_gradient(entries) - z))
    to_latents = jnp.mean(jnp.square(entries - jax.lax.stop_gradient(z)))
    loss, metrics = reconstruction_loss(decoded, images, weight, further)
    return loss + to_latents + commitment * to_entries, {"quantisation": to_latents} | metrics


def reconstruction_loss(
    decoded: Float[Array, "b h w c"],
    images: Float[Array, "b h w c"],
    weight: Float[Array, "b h w 1"] | None,
    further: Terms | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the part of the loss that depends on the reconstructions alone, and its metrics.

    Args:
      decoded, images: reconstructions and images in [-1, 1].
      weight, further: as in `autoencoder_loss`.

    Returns:
      The loss, and the metrics `reconstruction` and `psnr` (`errors`) and those of `further`.
    """
    loss, metrics = _reconstruction(decoded, images, weight), errors(decoded, images)
    if further is None:
        return loss, metrics
    more, of_terms = further(decoded, images)
    return loss + more, metrics | of_terms


def perceptual_distance(
    network: Lpips, decoded: Float[Array, "b h w 3"], images: Float[Array, "b h w 3"]
) -> Float[Array, ""]:
    """Return the mean of `Lpips.distance` over a batch in [-1, 1], with a gradient to `decoded`.

    The features of the images are computed apart, because no activations of theirs need to be kept
    for the backward pass.
    """
    wanted = jax.lax.stop_gradient(network.features(images))
    return jnp.mean(squared_distance(network.features(decoded), wanted))


def errors(decoded: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> dict[str, Array]:
    """Return mean absolute error and PSNR (from the mean squared error) of a batch in [-1, 1]."""
    return {
        "reconstruction": _reconstruction(decoded, images, None),
        "psnr": 10.0 * jnp.log10(PEAK_TO_PEAK**2 / jnp.mean(jnp.square(decoded - images))),
    }


def _reconstruction(decoded: Array, images: Array, weight: Array | None) -> Array:
    error = jnp.abs(decoded - images)
    return jnp.mean(error if weight is None else weight * error)


def batches(images: Float[Array, "n h w c"]) -> list[Float[Array, "_ h w c"]]:
    """Split images into batches of at most `STATISTICS_BATCH`."""
    return [images[i : i + STATISTICS_BATCH] for i in range(0, len(images), STATISTICS_BATCH)]


def latent_scale(autoencoder: Autoencoder, images: Float[Array, "n h w c"]) -> float:
    """Return the scaling factor that gives sampled latents unit standard deviation.

    It is the reciprocal of the standard deviation over all channels about their common mean.

    Args:
      autoencoder: a trained autoencoder, whose own scaling factor is ignored.
      images: training images in [-1, 1], encoded `STATISTICS_BATCH` at a time.
    """
    noise = posterior_noise(autoencoder.config, jax.random.key(0), images)
    latents = [
        sample_latent(eps, *autoencoder.encode(part), 1.0)
        for eps, part in zip(batches(noise), batches(images), strict=True)
    ]
    return float(1.0 / np.std(np.concatenate(latents), dtype=np.float64))
