"""Autoencoders small enough for tests, with random weights, files of them, and pictures."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sisma_jax.models.autoencoder import AutoencoderConfig, parameter_shapes
from tests.golden.autoencoder_recipe import compvis_name

SMALL_KL = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4)
SMALL_TINY = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4)
WEIGHTS = "diffusion_pytorch_model.safetensors"


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


def write_folder(folder, fields, tensors):
    """Write a diffusers folder: config.json and WEIGHTS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / WEIGHTS)
    return folder


def as_compvis(tensors, levels, prefix=""):
    """Tensors of diffusers' names under CompVis', where attention has 1 x 1 convolutions."""
    return {
        prefix + compvis_name(name, levels): (
            x[:, :, None, None] if ".attentions." in name and x.ndim == 2 else x
        )
        for name, x in tensors.items()
    }
