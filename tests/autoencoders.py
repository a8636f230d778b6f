"""Autoencoders small enough for tests, with random weights, and pictures for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.models.autoencoder import AutoencoderConfig, parameter_shapes

SMALL_KL = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4)
SMALL_TINY = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4)


cached_shapes = functools.cache(parameter_shapes)


def random_params(config, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype),
        cached_shapes(config),
    )


def smooth_images(count, height, width, seed=0):
    """Images with correlated pixels, in [-1, 1]."""
    coarse = np.random.default_rng(seed).uniform(-1, 1, (count, height // 8, width // 8, 3))
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for axis in (1, 2):
        image = (image + np.roll(image, 1, axis) + np.roll(image, 2, axis)) / 3
    return jnp.asarray(image, jnp.float32)
